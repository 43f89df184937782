// The browser of preference pairs: draws both trajectories in two views and the frames of both segments at one step.
"use strict";
(() => {
  const source = document.getElementById("pair-data");
  if (!source) return;
  const { groups, pairs } = JSON.parse(source.textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const SIDES = ["winner", "loser"], COLOUR = { winner: "cw", loser: "cl" };
  const VIEWS = [
    { title: "From above: x and y (m)", axes: [0, 1], names: ["x", "y"] },
    { title: "From behind the robot: x and z (m)", axes: [0, 2], names: ["x", "z"] },
  ];
  const WIDTH = 420, HEIGHT = 300, PAD = 34;
  let pair = null, step = 0, timer = null;

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const draw = (parent, name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  const rounds = make("select", { "aria-label": "collection" });
  const list = make("select", { "aria-label": "pair" });
  const previous = make("button", { type: "button" }, "Previous pair"), next = make("button", { type: "button" }, "Next pair");
  const play = make("button", { type: "button" }, "Play");
  const slider = make("input", { type: "range", min: 0, value: 0, "aria-label": "control steps since the shared start" });
  const readout = make("output");
  const frames = make("div", { class: "frames" }), views = make("div", { class: "views" });
  const facts = make("dl", { class: "facts-list" });
  const strips = {}, markers = [];

  for (const side of SIDES) {
    strips[side] = { head: make("div", { class: "side" }), image: make("div", { class: `strip ${COLOUR[side]}`, role: "img" }) };
    const cameras = make("div", { class: "cameras" }, ...["head", "left wrist", "right wrist"].map((c) => make("span", {}, c)));
    frames.append(make("div", { class: COLOUR[side] }, strips[side].head, strips[side].image, cameras));
  }
  document.getElementById("browser").append(
    make("div", { class: "browser-bar" }, rounds, list, previous, next),
    make("div", { class: "stepper" }, play, slider, readout), frames, views, facts);

  const bounds = (axis) => {
    const values = SIDES.flatMap((side) => pair[side].arms.flat().map((point) => point[axis]));
    return [Math.min(...values), Math.max(...values)];
  };
  // One scale for both axes, so that shapes are true; the data is centred in the box.
  const projection = (axes) => {
    const [h, v] = axes.map(bounds);
    const scale = Math.min((WIDTH - 2 * PAD) / Math.max(h[1] - h[0], 50), (HEIGHT - 2 * PAD) / Math.max(v[1] - v[0], 50));
    const x = (p) => WIDTH / 2 + (p[axes[0]] - (h[0] + h[1]) / 2) * scale;
    const y = (p) => HEIGHT / 2 - (p[axes[1]] - (v[0] + v[1]) / 2) * scale;
    return { x, y, scale, centre: [(h[0] + h[1]) / 2, (v[0] + v[1]) / 2] };
  };

  const grid = (svg, view, at) => {
    const spacing = [20, 50, 100, 200, 500].find((mm) => mm * at.scale > 62) || 1000;
    const half = [WIDTH / 2 / at.scale, HEIGHT / 2 / at.scale];
    for (const i of [0, 1]) {
      const low = Math.ceil((at.centre[i] - half[i]) / spacing), high = Math.floor((at.centre[i] + half[i]) / spacing);
      for (let k = low; k <= high; k++) {
        const point = [0, 0, 0];
        point[view.axes[i]] = k * spacing;
        const text = ((k * spacing) / 1000).toFixed(2).replace("-", "\u2212");
        const pixel = i ? at.y(point) : at.x(point);
        if (i) {
          if (pixel < 12 || pixel > HEIGHT - 24) continue;
          draw(svg, "line", { x1: 0, x2: WIDTH, y1: pixel, y2: pixel, class: "grid" });
          draw(svg, "text", { x: 4, y: pixel - 3, class: "small" }, `${view.names[1]} ${text}`);
        } else {
          if (pixel < 44 || pixel > WIDTH - 16) continue;
          draw(svg, "line", { x1: pixel, x2: pixel, y1: 0, y2: HEIGHT, class: "grid" });
          draw(svg, "text", { x: pixel, y: HEIGHT - 5, "text-anchor": "middle", class: "small" }, `${view.names[0]} ${text}`);
        }
      }
    }
  };

  const drawViews = () => {
    views.replaceChildren();
    markers.length = 0;
    for (const view of VIEWS) {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", view.title);
      const at = projection(view.axes);
      grid(svg, view, at);
      for (const side of ["loser", "winner"]) {
        for (const arm of [0, 1]) {
          const points = pair[side].arms[arm];
          draw(svg, "polyline", {
            points: points.map((p) => `${at.x(p).toFixed(1)},${at.y(p).toFixed(1)}`).join(" "),
            class: `path ${side} ${COLOUR[side]}`,
          });
          markers.push({ dot: draw(svg, "circle", { r: 5, class: `now ${COLOUR[side]}` }), points, at });
        }
      }
      for (const arm of [0, 1]) {
        const start = pair.winner.arms[arm][0];
        draw(svg, "circle", { cx: at.x(start), cy: at.y(start), r: 4, class: "start" });
        const left = at.x(start) < WIDTH / 2, x = at.x(start) + (left ? 8 : -8);
        const anchor = left ? "start" : "end";
        draw(svg, "text", { x, y: at.y(start) + 15, "text-anchor": anchor, class: "arm" }, arm ? "right arm" : "left arm");
      }
      views.append(make("figure", {}, make("figcaption", {}, view.title), svg));
    }
  };

  const drawStep = () => {
    slider.value = step;
    readout.textContent = `step ${step} of ${slider.max}`;
    for (const side of SIDES) {
      const data = pair[side], strip = strips[side];
      let shown = 0;
      while (shown + 1 < data.frames.length && data.frames[shown + 1] <= step) shown++;
      strip.image.style.backgroundPosition = `0 ${data.frames.length > 1 ? (100 * shown) / (data.frames.length - 1) : 0}%`;
      strip.image.setAttribute("aria-label", `cameras of the ${side} at step ${data.frames[shown]}`);
      const at = Math.min(step, data.steps), grip = data.gripper.map((g) => Math.round(100 * g[at]));
      const ended = step > data.steps ? ", ended" : "";
      strip.head.replaceChildren(make("b", {}, side === "winner" ? "Winner" : "Loser"), make("span", {},
        ` ${data.steps} steps${ended}; frame at step ${data.frames[shown]}; grippers open ${grip[0]} %, ${grip[1]} %`));
    }
    for (const { dot, points, at } of markers) {
      const point = points[Math.min(step, points.length - 1)];
      dot.setAttribute("cx", at.x(point));
      dot.setAttribute("cy", at.y(point));
    }
  };

  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const members = () => pairs.filter((p) => p.node === rounds.value);
  const show = (index) => {
    stop();
    const shown = members();
    pair = shown[(index + shown.length) % shown.length];
    list.value = pair.id;
    step = 0;
    slider.max = Math.max(pair.winner.steps, pair.loser.steps);
    for (const side of SIDES) {
      strips[side].image.style.backgroundImage = `url(${pair[side].sprite})`;
      strips[side].image.style.backgroundSize = `100% ${100 * pair[side].frames.length}%`;
    }
    facts.replaceChildren(...Object.entries(pair.meta).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
    drawViews();
    drawStep();
  };
  const fill = () => {
    list.replaceChildren(...members().map((p) =>
      make("option", { value: p.id }, `${p.id}: ${p.meta.task || ""} seed ${p.meta.seed || "?"}, ${p.meta.trigger || ""}`)));
    show(0);
  };

  rounds.append(...groups.map((group) => make("option", { value: group.node }, group.title)));
  rounds.addEventListener("change", fill);
  list.addEventListener("change", () => show(list.selectedIndex));
  previous.addEventListener("click", () => show(list.selectedIndex - 1));
  next.addEventListener("click", () => show(list.selectedIndex + 1));
  slider.addEventListener("input", () => { stop(); step = Number(slider.value); drawStep(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (step >= Number(slider.max)) step = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (step >= Number(slider.max)) return stop();
      step++;
      drawStep();
    }, 60);
  });
  fill();
})();
