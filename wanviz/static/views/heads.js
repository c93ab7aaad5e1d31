// Every layer and head on one word, side by side.
import { Heat, digits, h, options } from "./kit.js";

const ORDERS = ["place", "mass", "focus", "entropy", "moves"];

export function mountHeads(page) {
  const { data, maps, store } = page;
  const state = store.state;
  const layers = maps.stored("layer");
  const heads = maps.stored("head");
  const possible = layers.length && heads.length && maps.find({ layer: 0, head: 0, step: null });
  const order = h("select", { "data-id": "order", onchange: () => store.set({ order: order.value }) });
  const bright = h("select", { "data-id": "bright", onchange: () => store.set({ bright: bright.value }) });
  const orderLabel = h("span");
  const brightLabel = h("span");
  const note = h("p", { class: "wv-soft", "data-id": "heads-note" });
  const grid = h("div", { class: "wv-heads", "data-id": "heads" });
  const knobs = h("div", { class: "wv-row" }, h("label", { class: "wv-knob" }, orderLabel, order), h("label", { class: "wv-knob" }, brightLabel, bright));
  const cells = [];
  const heat = new Heat(maps.rows, maps.columns, maps.columns, maps.rows);

  if (possible) {
    layers.forEach((_, layer) => heads.forEach((__, head) => {
      const canvas = h("canvas", { width: maps.columns, height: maps.rows, class: "wv-crisp" });
      const label = h("span");
      const button = h("button", { onclick: () => store.set(state.layer === layer && state.head === head ? { layer: null, head: null } : { layer, head, step: null }) }, canvas, label);
      cells.push({ layer, head, canvas, label, button });
      grid.append(button);
    }));
    grid.style.setProperty("--heads", heads.length);
  }

  /** What a head does with a word, as numbers to sort by. */
  function scores(index, chosen) {
    const map = maps.at(index, chosen, null);
    if (!map) return { mass: 0, focus: 0, entropy: 1, moves: 0, peak: 0 };
    const { levels, unit } = map;
    let [sum, log, change] = [0, 0, 0];
    for (const level of levels) sum += level;
    for (const level of levels) if (level) log -= (level / sum) * Math.log(level / sum);
    for (let i = maps.cells; i < levels.length; i += 1) change += Math.abs(levels[i] - levels[i - maps.cells]);
    const mean = sum / levels.length;
    return { mass: unit * mean, focus: sum ? maps.most / mean : 0, entropy: log / Math.log(levels.length), moves: sum ? change / sum : 0, peak: unit * maps.most };
  }

  function show() {
    const { say } = page;
    const [index] = page.shown();
    grid.hidden = knobs.hidden = !possible || index === undefined;
    if (!possible) note.textContent = say(page.kept("layer", "head") ? "headsLeftOut" : "headsNone");
    else if (index === undefined) note.textContent = say("headsChoose");
    if (!possible || index === undefined) return;
    const latent = page.latentOf(state.frame);
    note.textContent = say("headsNote", page.nameOf(index), say("span", data.spans[latent]));
    for (const cell of cells) cell.scores = scores(index, { layer: cell.layer, head: cell.head, step: null });
    const top = Math.max(...cells.map((cell) => cell.scores.peak));
    const sign = state.order === "entropy" ? 1 : -1;
    const sorted = state.order === "place" ? cells : [...cells].sort((a, b) => sign * (a.scores[state.order] - b.scores[state.order]));
    grid.classList.toggle("wv-by-place", state.order === "place");
    for (const { layer, head, canvas, label, button, scores: found } of sorted) {
      const map = maps.at(index, { layer, head, step: null }, latent);
      const context = canvas.getContext("2d");
      if (map) {
        heat.one(map, [0, state.bright === "own" ? found.peak : top], page.table(), 1, [1, 1]);
        context.drawImage(heat.canvas, 0, 0);
      } else context.clearRect(0, 0, canvas.width, canvas.height);
      label.textContent = `${layers[layer].name}·${heads[head].name}`;
      const score = state.order === "place" ? found.mass : found[state.order];
      const name = say(`orders.${state.order === "place" ? "mass" : state.order}`);
      button.setAttribute("aria-label", say("headCell", layers[layer].name, heads[head].name, `${name} ${digits(score)}`));
      button.title = button.getAttribute("aria-label");
      button.setAttribute("aria-pressed", String(state.layer === layer && state.head === head));
      grid.append(button);
    }
  }

  store.on((changed) => {
    if (changed.has("language")) {
      const { say } = page;
      orderLabel.textContent = say("sort");
      brightLabel.textContent = say("bright");
      options(order, ORDERS.map((name) => [name, say(`orders.${name}`)]), state.order);
      options(bright, Object.entries(say("brights")), state.bright);
    }
    if (["hovered", "pinned", "layer", "head", "order", "bright", "colors", "language", "expert"].some((name) => changed.has(name))) show();
    else if (changed.has("frame") && page.latentOf(state.frame) !== page.shownLatent) show();
    page.shownLatent = page.latentOf(state.frame);
  });

  return h("div", {}, note, knobs, grid);
}
