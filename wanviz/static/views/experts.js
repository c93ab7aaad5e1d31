// Both kinds of experts: which denoiser works at which step, and which token experts work in which layer, and where.
import { colorAt, digits, drawing, h, percent, shape } from "./kit.js";

export function mountNoise(page) {
  const { data, store } = page;
  const home = h("div", { "data-id": "noise" });
  const note = h("div", { class: "wv-note", "data-id": "noise-note" });

  function show() {
    const { say } = page;
    const count = data.steps.length;
    const svg = drawing(280, 256, say("noise"));
    const high = data.steps.filter((step) => step.noise_expert === "high").length;
    const one = data.steps.every((step) => step.noise_expert === "");
    const said = () => {
      const lines = one ? [say("oneDenoiser", count)] : say("noise_", high, count - high);
      note.replaceChildren(...lines.map((line, i) => h("div", {}, h("i", { class: `wv-key ${i ? "wv-of-other" : "wv-of-end_of_text"}` }), line)), h("div", {}, say("sigma")));
    };
    said();
    const wide = 240 / Math.max(count, 1);
    for (const level of [0, 0.5, 1]) {
      const y = 230 - level * 215;
      shape(svg, "line", { x1: 32, x2: 274, y1: y, y2: y, class: "wv-axis" });
      shape(svg, "text", { x: 26, y: y + 4, "text-anchor": "end" }, String(level));
    }
    data.steps.forEach((step, i) => {
      const at = { x: 34 + i * wide + wide * 0.08, width: wide * 0.84, y: 230 - step.sigma * 215, height: step.sigma * 215 };
      const bar = shape(svg, "rect", { ...at, rx: 2, class: `wv-noise-${step.noise_expert || "high"}` });
      bar.addEventListener("pointerenter", () => (note.textContent = say("stepSaid", step.step, digits(step.sigma), step.noise_expert)));
      bar.addEventListener("pointerleave", said);
      if (i % Math.max(1, Math.ceil(count / 6)) === 0) shape(svg, "text", { x: 34 + (i + 0.5) * wide, y: 248, "text-anchor": "middle" }, String(step.step));
    });
    home.replaceChildren(svg);
  }

  store.on((changed) => changed.has("language") && show());
  return h("div", {}, home, note);
}

export function mountLoad(page) {
  const { data, store } = page;
  const state = store.state;
  const grid = h("div", { class: "wv-load", "data-id": "load", role: "group" });
  const note = h("p", { class: "wv-note", "data-id": "load-note" });
  const reads = h("p", { class: "wv-soft", "data-id": "expert-words", hidden: true });
  const cells = [];

  if (data.load) {
    const every = Math.ceil(data.load.length / 12);
    grid.style.setProperty("--experts", data.load[0].length);
    grid.append(h("span"), ...data.load[0].map((_, expert) => h("span", { class: "wv-tick" }, expert % Math.ceil(data.load[0].length / 16) ? "" : String(expert))));
    data.load.forEach((line, layer) => {
      grid.append(h("span", { class: "wv-tick" }, layer % every ? "" : String(data.layers[layer])));
      line.forEach((value, expert) => {
        const cell = h("button", {
          class: "wv-cell",
          disabled: !data.where,
          onpointerenter: () => (note.textContent = cell.getAttribute("aria-label")),
          onpointerleave: say,
          onclick: () => {
            const same = state.expert?.layer === layer && state.expert?.expert === expert;
            store.set({ expert: same ? null : { layer, expert }, hovered: null });
          },
        });
        cells.push({ cell, layer, expert, value });
        grid.append(cell);
      });
    });
  }

  function say() {
    note.textContent = data.load ? page.say("loadNote", percent(Math.max(...data.load.flat()))) : page.say(data.routing ? "noExperts" : "noLoad");
  }

  function evenness(line) {
    return line.reduce((sum, share) => (share > 0 ? sum - share * Math.log(share) : sum), 0) / Math.log(Math.max(2, line.length));
  }

  function show() {
    say();
    if (!data.load) return;
    const top = Math.max(...data.load.flat());
    grid.setAttribute("aria-label", page.say("load"));
    for (const { cell, layer, expert, value } of cells) {
      cell.style.background = colorAt(page.table(), value / top);
      cell.setAttribute("aria-label", page.say("loadCell", data.layers[layer], expert, percent(value)) + page.say("entropy", evenness(data.load[layer]).toFixed(2)));
      cell.setAttribute("aria-pressed", String(state.expert?.layer === layer && state.expert?.expert === expert));
    }
    reads.hidden = !state.expert;
    if (!state.expert) return;
    const words = page.expertReads().filter(({ lift }) => lift > 1.1).slice(0, 4);
    const said = words.map(({ index, lift }) => `${page.nameOf(index)} ${page.say("expertWord", digits(lift))}`);
    reads.textContent = `${page.say("expertWords")} ${said.length ? said.join(", ") : page.say("expertNone")}.`;
  }

  store.on((changed) => ["language", "colors", "expert"].some((name) => changed.has(name)) && show());
  return h("div", {}, grid, note, reads);
}
