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
  const mates = h("p", { class: "wv-soft", "data-id": "expert-mates", hidden: true });
  const cells = [];

  if (data.load) {
    const every = Math.ceil(data.load.length / 12);
    grid.style.setProperty("--experts", data.load[0].length);
    grid.append(h("span"), ...data.load[0].map((_, expert) => h("span", { class: "wv-tick" }, expert % Math.ceil(data.load[0].length / 16) ? "" : String(expert))));
    data.load.forEach((line, layer) => {
      grid.append(h("span", { class: "wv-tick" }, layer % every ? "" : String(data.layers[layer])));
      line.forEach((_, expert) => {
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
        cells.push({ cell, layer, expert });
        grid.append(cell);
      });
    });
  }

  /** Load by layer and token expert: the mean over all steps, or over those that are chosen. */
  function load() {
    const choice = state.step === null ? null : page.maps.choices("step")[state.step];
    const chosen = choice && data.loadBySteps.slice(choice.first, choice.first + choice.members);
    if (!chosen?.length || chosen.flat(2).includes(null)) return data.load;
    return data.load.map((line, layer) => line.map((_, expert) => chosen.reduce((sum, step) => sum + step[layer][expert], 0) / chosen.length));
  }

  /** Token experts that work on the same tokens more often than by chance, the most first: [{ expert, lift }]. */
  function partners({ layer, expert }) {
    const pairs = data.together[layer];
    const alone = pairs.map((line, other) => line[other]);
    const found = pairs[expert].map((share, other) => ({ expert: other, lift: alone[expert] * alone[other] > 0 ? share / (alone[expert] * alone[other]) : 0 }));
    return found.filter(({ expert: other, lift }) => other !== expert && lift > 1.05).sort((a, b) => b.lift - a.lift).slice(0, 3);
  }

  function say() {
    if (!data.load) note.textContent = page.say(data.routing ? "noExperts" : "noLoad");
    else {
      const where = state.step === null || load() === data.load ? page.say("all") : page.sliceName({ layer: null, head: null, step: state.step });
      note.textContent = page.say("loadNote", percent(Math.max(...load().flat())), where);
    }
  }

  function evenness(line) {
    return line.reduce((sum, share) => (share > 0 ? sum - share * Math.log(share) : sum), 0) / Math.log(Math.max(2, line.length));
  }

  function show() {
    say();
    if (!data.load) return;
    const now = load();
    const top = Math.max(...now.flat());
    grid.setAttribute("aria-label", page.say("load"));
    for (const { cell, layer, expert } of cells) {
      const value = now[layer][expert];
      cell.style.background = colorAt(page.table(), value / top);
      cell.setAttribute("aria-label", page.say("loadCell", data.layers[layer], expert, percent(value)) + page.say("entropy", evenness(now[layer]).toFixed(2)));
      cell.setAttribute("aria-pressed", String(state.expert?.layer === layer && state.expert?.expert === expert));
    }
    reads.hidden = mates.hidden = !state.expert;
    if (!state.expert) return;
    const words = page.expertReads().filter(({ lift }) => lift > 1.1).slice(0, 4);
    const said = words.map(({ index, lift }) => `${page.nameOf(index)} ${page.say("expertWord", digits(lift))}`);
    const others = data.together ? partners(state.expert).map(({ expert, lift }) => page.say("expertMate", expert, digits(lift))) : [];
    mates.textContent = data.together ? `${page.say("expertMates")} ${others.length ? others.join(", ") : page.say("expertNoMate")}.` : "";
    reads.textContent = `${page.say("expertWords", page.sliceName(page.expertSlice()))} ${said.length ? said.join(", ") : page.say("expertNone")}.`;
  }

  store.on((changed) => ["language", "colors", "expert", "step"].some((name) => changed.has(name)) && show());
  return h("div", {}, grid, note, reads, mates);
}
