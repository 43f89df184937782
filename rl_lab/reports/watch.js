// Follows a run: asks for what it does now, and when the report has changed takes over the parts that did. Parts that
// did not change stay as they are, with what is open, chosen or playing in them.
"use strict";
(() => {
  const main = document.querySelector("main"), { every, scripts } = JSON.parse(main.dataset.live);
  const ran = new Set([...document.querySelectorAll("script[data-name]")].map((script) => script.dataset.name));
  const keyed = (parent) => {
    const found = new Map();
    for (const part of parent.children) {
      const name = part.id || part.className || part.tagName;
      let key = name;
      for (let i = 2; found.has(key); i++) key = `${name} ${i}`;
      found.set(key, part);
    }
    return found;
  };
  const parsed = (text) => new DOMParser().parseFromString(text, "text/html");
  const ask = async (name) => {
    const answer = await fetch(name, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    return parsed(await answer.text());
  };
  // Before other scripts fill their sections: what the server said.
  const said = new Map([...keyed(main)].map(([key, part]) => [key, part.outerHTML]));

  const keepOpen = (old, part) => {
    const before = [...old.querySelectorAll("details")], after = [...part.querySelectorAll("details")];
    if (before.length === after.length) after.forEach((one, place) => { one.open = before[place].open; });
  };
  const run = (page, id) => (scripts[id] || []).forEach((name, place, all) => {
    if (place < all.length - 1 && ran.has(name)) return; // what sections share stays
    const source = page.querySelector(`script[data-name="${name}"]`), script = document.createElement("script");
    if (!source) return;
    script.textContent = source.textContent;
    document.body.append(script);
    ran.add(name);
  });

  const update = (page) => {
    const old = keyed(main), parts = keyed(page.querySelector("main"));
    let before = null;
    for (const [key, part] of parts) {
      const text = part.outerHTML, mine = old.get(key);
      if (mine && (key === "now" || said.get(key) === text)) {
        before = mine;
        continue;
      }
      if (mine) {
        keepOpen(mine, part);
        mine.replaceWith(part);
      } else if (before) before.after(part);
      else main.prepend(part);
      said.set(key, text);
      before = part;
      run(page, part.id);
    }
    for (const [key, part] of old) if (!parts.has(key)) part.remove();
  };

  const look = async () => {
    const mine = document.getElementById("now");
    try {
      const now = (await ask("now")).getElementById("now");
      if (now.dataset.version !== mine.dataset.version) update(await ask("./"));
      mine.replaceWith(now);
    } catch (error) {
      const line = mine.querySelector("[role=status]");
      line.className = "alarm";
      line.textContent = `This page no longer follows the run: ${error.message}. Is rl_lab.watch still running?`;
    }
    setTimeout(look, 1000 * every);
  };
  setTimeout(look, 1000 * every);
})();
