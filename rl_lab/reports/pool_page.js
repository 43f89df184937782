// The browser of pool items: filter and sort the list, and show one item with its history and its rollouts.
"use strict";
(() => {
  const source = document.getElementById("pool-data");
  if (!source) return;
  const { items, categories, bands } = JSON.parse(source.textContent);
  const SORTS = {
    "frontier probability": (item) => -item.frontier,
    "pass rate, lowest first": (item) => item.rate,
    "pass rate, highest first": (item) => -item.rate,
    "age, oldest first": (item) => (item.age === null ? 1 : -item.age - 1),
    "most selected": (item) => -item.numPicked,
  };
  const LIMIT = 200;

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const number = (value, digits = 2) => (value === null || value === undefined ? "" : value.toFixed(digits));
  const choice = (label, all, values) =>
    make("select", { "aria-label": label }, ...[[all, ""], ...values.map((value) => [value, value])]
      .map(([text, value]) => make("option", { value }, text)));

  const search = make("input", { type: "search", placeholder: "id, task or prompt", "aria-label": "search" });
  const band = choice("band", "all bands", bands), category = choice("category", "all categories", categories);
  const state = choice("state", "any state", ["pinned", "retired", "pending"]);
  const sort = make("select", { "aria-label": "sort" }, ...Object.keys(SORTS).map((name) => make("option", { value: name }, name)));
  const count = make("output");
  const list = make("div", { class: "pool-list", role: "list" }), detail = make("div", { class: "pool-detail" });
  document.getElementById("pool-browser").append(
    make("div", { class: "pool-bar" }, search, band, category, state, sort, count), make("div", { class: "pool" }, list, detail));

  const badge = (name) => make("span", { class: `badge band-${name}` }, name);
  const text = (item) => [item.id, item.task, item.category, ...item.content.map(([, value]) => value)].join(" ").toLowerCase();
  const wanted = (item) =>
    (!band.value || item.band === band.value) && (!category.value || item.category === category.value) &&
    (!state.value || item.state.split(" ").includes(state.value)) &&
    (!search.value || text(item).includes(search.value.toLowerCase()));

  const table = (head, rows) => {
    const body = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))));
    const top = make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name))));
    return make("div", { class: "scroll" }, make("table", { class: "small" }, top, make("tbody", {}, ...body)));
  };

  // A token is shaded by 1 - p: white for a certain one, full for one that was hardly ever sampled.
  const tokens = (sample) => {
    const readout = make("div", { class: "readout" }, "Point at a token to see its log-probability.");
    const line = make("div", { class: "tokens" });
    sample.tokens.forEach((token, i) => {
      const logprob = sample.logprobs[i];
      const span = make("span", {}, token);
      if (typeof logprob === "number") {
        span.style.setProperty("--surprise", (1 - Math.exp(Math.min(logprob, 0))).toFixed(3));
        span.title = `log-probability ${logprob.toFixed(3)}, p = ${Math.exp(logprob).toFixed(3)}`;
        span.addEventListener("mouseenter", () => { readout.textContent = `token ${i + 1} of ${sample.tokens.length}: ${span.title}`; });
      }
      line.append(span);
    });
    return [line, readout];
  };

  const rollout = (sample) => {
    const rewards = sample.rewards.map(([name, value]) =>
      make("span", {}, `${name} `, make("b", {}, value === null ? "none" : number(value, 3))));
    const head = make("div", { class: "head" }, `step ${sample.step}, weight version ${sample.version}`, ...rewards);
    const shown = sample.tokens.length ? tokens(sample) : [make("div", { class: "tokens" }, sample.completion)];
    return make("div", { class: "rollout" }, head, ...shown);
  };

  const show = (item, button) => {
    for (const other of list.children) other.removeAttribute("aria-current");
    if (button) button.setAttribute("aria-current", "true");
    const facts = make("dl", { class: "facts-list" });
    const add = (name, value) => value !== "" && facts.append(make("dt", {}, name), make("dd", {}, value));
    add("band", badge(item.band));
    add("state", item.state);
    add("category, task", [item.category, item.task, item.reward_type].filter(Boolean).join(", "));
    add("frontier probability", number(item.frontier));
    add("pass rate (posterior mean)", number(item.rate));
    add("last group's mean", number(item.last));
    add("age", item.age === null ? "never observed" : `${item.age} weight versions`);
    for (const [name, value] of item.content) add(name, value);
    const images = item.images.map((uri) => make("img", { src: uri, alt: `picture of ${item.id}` }));
    const moves = item.moves.map(([step, version, n, mean, spread, signal, a, b, frontier, before, after]) =>
      [step, version, n, number(mean), number(spread), signal ? "yes" : "no", `Beta(${a}, ${b})`, number(frontier), `${before} \u2192 ${after}`]);
    const reasons = new Map();
    for (const [step, round, reason] of item.picked)
      reasons.set(reason, [...(reasons.get(reason) || []), round ? `${step} (refill)` : step]);
    const picked = [...reasons].map(([reason, steps]) => [reason, steps.join(", ")]);
    detail.replaceChildren(
      make("h3", {}, item.id), make("div", { class: "pool-images" }, ...images), facts,
      make("h3", {}, "How its posterior moved"),
      moves.length ? table(["step", "version", "rollouts", "mean", "spread", "signal", "posterior", "frontier", "band"], moves)
        : make("p", { class: "note" }, "It was never observed."),
      make("h3", {}, "Last rollouts"),
      ...(item.samples.length ? item.samples.map(rollout) : [make("p", { class: "note" }, "None is stored.")]),
      make("h3", {}, `Selected ${item.numPicked} times`), ...(picked.length ? [table(["reason", "steps"], picked)] : []));
  };

  const entry = (item) => {
    const thumb = make("span", { class: "thumb" });
    if (item.images.length) thumb.style.backgroundImage = `url(${item.images[0]})`;
    const rate = `rate ${number(item.rate)}, frontier ${number(item.frontier)}`;
    const button = make("button", { type: "button", role: "listitem", "data-item": item.id }, thumb,
      make("span", { class: "name" }, item.id), badge(item.band),
      make("span", { class: "quiet" }, [item.category, item.task, item.state].filter(Boolean).join(", ")), make("span", { class: "quiet" }, rate));
    button.addEventListener("click", () => show(item, button));
    return button;
  };

  const refresh = () => {
    const key = SORTS[sort.value], found = items.filter(wanted).sort((a, b) => key(a) - key(b));
    list.replaceChildren(...found.slice(0, LIMIT).map(entry));
    count.textContent = `${found.length} of ${items.length} items` + (found.length > LIMIT ? `, the first ${LIMIT} listed` : "");
    if (found.length) show(found[0], list.firstChild);
    else detail.replaceChildren(make("p", { class: "note" }, "No item matches."));
  };
  for (const control of [search, band, category, state, sort]) control.addEventListener("input", refresh);
  refresh();
})();
