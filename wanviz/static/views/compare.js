// Two traces side by side, linked in time, slice and word, and the difference of their maps.
import { AXES, Heat, SLICE, clamp, digits, h } from "./kit.js";
import { mountPlayer } from "./player.js";
import { makePage, mountHeader } from "./dashboard.js";

const LINKED = ["frame", "opacity", "scale", "colors", "speed", "language", "explained", ...AXES];

/** The subject of another page that is called the same; null if there is none. */
function counterpart(page, other, index) {
  const { words, kinds } = page.data;
  const wanted = index < words.length ? words[index].text : kinds[index - words.length].name;
  const found = index < words.length ? other.data.words.findIndex(({ text }) => text === wanted) : other.data.kinds.findIndex(({ name }) => name === wanted);
  if (found < 0) return null;
  return index < words.length ? found : found + other.data.words.length;
}

/** The choice of another page for the same layers, heads or steps; null, the mean, where it has none. */
function sameChoice(page, other, axis, index) {
  if (index === null) return null;
  const { name, members } = page.maps.choices(axis)[index];
  const found = other.maps.choices(axis).findIndex((one) => one.name === name && one.members === members);
  return found < 0 ? null : found;
}

/** What one page is told, the other does, too; `passing` keeps it from being handed back. */
function link(page, other, passing) {
  page.store.on((changed, state) => {
    if (passing.now) return;
    const change = {};
    for (const name of LINKED) if (changed.has(name)) change[name] = state[name];
    if ("frame" in change) change.frame = Math.min(change.frame, other.data.video.count - 1);
    if ("explained" in change) change.explained &&= Boolean(other.data.explanation);
    for (const axis of AXES) if (axis in change) change[axis] = sameChoice(page, other, axis, change[axis]);
    if (change.explained) for (const axis of AXES) change[axis] = null; // also one that this page lacks
    if (changed.has("hovered")) change.hovered = state.hovered === null ? null : counterpart(page, other, state.hovered);
    if (changed.has("pinned")) {
      change.pinned = state.pinned.map((index) => counterpart(page, other, index)).filter((index) => index !== null);
    }
    passing.now = true;
    try {
      other.store.set(change);
    } finally {
      passing.now = false;
    }
  });
}

/** Draws two traces into an element, and what their maps differ by. */
export async function mountComparison(root, data, beside, { language = "en", keys = root, kernels = [] } = {}) {
  // Finished videos are compared, so what each step predicted is left out.
  const pages = await Promise.all([data, beside].map((one, i) => makePage({ ...one, previews: null }, kernels[i])));
  const [first, second] = pages;
  const players = pages.map(mountPlayer);
  const { store, maps } = first;
  const state = store.state;
  const same = String(data.grid) === String(beside.grid);
  const { width, height } = data.video;
  const wide = Math.min(width, 240);
  const heat = new Heat(maps.rows, maps.columns, wide, Math.max(1, Math.round((height * wide) / width)));
  const canvas = h("canvas", { class: `wv-canvas${width < 320 ? " wv-crisp" : ""}`, "data-id": "difference", width, height, role: "img" });
  const note = h("p", { class: "wv-soft", "data-id": "difference-note" });
  const title = h("h2");
  const names = pages.map(() => h("h2"));

  /** The maps of the word that is seen, in both: { found, top }; or { why } there are none. */
  function both() {
    const { say } = first;
    const [index] = first.shown();
    if (!same) return { why: say("differenceGrids") };
    const there = index === undefined ? null : counterpart(first, second, index);
    if (there === null) return { why: say("differenceChoose") };
    const [one, two] = pages.map((page) => page.sliceName(page.store.state, page.sayOfMap));
    const methods = pages.map((page) => page.method());
    if (methods[0] !== methods[1]) return { why: say("differenceMethods", ...methods.map((method) => method ?? say("attention"))) };
    if (one !== two) return { why: say("differenceSlices", one, two) };
    const lacking = pages.find((page) => !page.maps.find(page.store.state));
    if (lacking) return { why: lacking.absence() };
    const [latent, other] = [first.latentOf(state.frame), second.latentOf(second.store.state.frame)];
    const found = [maps.at(index, state, latent), second.maps.at(there, second.store.state, other)];
    if (!found.every(Boolean)) return { why: say("missing") };
    return { found, top: Math.max(maps.peak(index, state), second.maps.peak(there, second.store.state)) };
  }

  function draw() {
    const { say } = first;
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "source-over";
    first.drawFrame(context, state.frame, width, height);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    const { found, top, why } = both();
    if (top > 0) {
      const [least, most] = data.alpha;
      heat.fill(([a, b], put) => {
        const off = clamp((a * found[0].unit - b * found[1].unit) / top, -1, 1);
        const color = Math.round((0.5 + off / 2) * 255) * 3;
        put(first.diverging[color], first.diverging[color + 1], first.diverging[color + 2], state.opacity * (least + (most - least) * Math.abs(off)));
      }, found);
      context.imageSmoothingEnabled = wide !== width;
      context.drawImage(heat.canvas, 0, 0, width, height);
    }
    note.textContent = why ?? `${say("differenceNote")} ± ${digits(top)}`;
    canvas.setAttribute("aria-label", say("difference"));
  }

  root.classList.add("wv");
  root.append(
    mountHeader(first, "compare"),
    h("main", {},
      h("div", { class: "wv-two" }, ...pages.map((page, i) => h("section", { class: "wv-card", "data-side": i ? "second" : "first" },
        names[i], h("p", { class: "wv-soft" }, page.data.facts), players[i].words, players[i].stage))),
      h("section", { class: "wv-card" }, title, h("div", { class: "wv-difference" }, canvas), note)));
  const passing = { now: false };
  link(first, second, passing);
  link(second, first, passing);
  for (const page of pages) {
    page.store.on((changed) => {
      if (changed.has("language")) {
        title.textContent = first.say("difference");
        names.forEach((name, i) => (name.textContent = first.say(i ? "second" : "first")));
        root.lang = first.store.state.language;
        if (keys === document) document.documentElement.lang = root.lang;
      }
      if (["frame", "hovered", "pinned", "opacity", "language", "ready", "complete", ...SLICE].some((name) => changed.has(name))) draw();
    });
  }
  keys.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const order = event.target.closest?.('[data-side="second"]') ? [...players].reverse() : players;
    if (!order.some((player) => player.key(event))) return;
    event.preventDefault();
    event.stopPropagation();
  });
  store.set({ language });
  await Promise.all(pages.map((page) => page.loadFrames()));
  return pages;
}
