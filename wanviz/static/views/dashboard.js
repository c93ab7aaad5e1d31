// Joins the views of one trace under one header.
import { AXES, Maps, PIN_COLORS, Store, addText, bytes, h, options } from "./kit.js";
import { speaker } from "./texts.js";
import { mountPlayer } from "./player.js";
import { mountHeads } from "./heads.js";
import { mountDenoising } from "./denoise.js";
import { mountFrames } from "./frames.js";
import { mountLoad, mountNoise } from "./experts.js";

const DECODED_TOGETHER = 8; // pictures, so that a click between them is answered

const decoded = (picture) => createImageBitmap(new Blob([bytes(picture)], { type: "image/webp" }));

/** What the views of one trace share: its data, its state, and questions about both. */
class Page {
  constructor(data, maps, kernel) {
    Object.assign(this, { data, maps, kernel, pictures: [], previews: [], frames: new Map(), asked: new Map() });
    this.tables = Object.fromEntries(Object.entries(data.colors).map(([name, table]) => [name, bytes(table)]));
    this.diverging = bytes(data.diverging);
    this.where = data.where ? bytes(data.where.levels) : null;
    for (const axis of AXES) maps.finer[axis] = this.finer(axis);
    this.steps = this.singleSteps();
    this.store = new Store({
      frame: 0, layer: null, head: null, step: null, explained: false, hovered: null, pinned: [], expert: null, region: null, opacity: 1, scale: "word",
      colors: Object.keys(data.colors)[0], speed: 1, playing: false, predicted: true, order: "place", bright: "own", baseline: false, language: null, ready: false, complete: false, arrived: 0,
    });
    this.store.on((changed, state) => {
      const [sliced, sought] = [AXES.some((axis) => changed.has(axis)), AXES.some((axis) => state[axis] !== null)];
      if (state.explained && sliced && sought) this.store.set({ explained: false }); // an explanation has no slices
      if (sliced) this.fetchSlice();
    });
    [this.say, this.sayOfMap] = [speaker("en", data.method), speaker("en", this.method())];
    this.store.on((changed, { language }) => {
      if (changed.has("language") || changed.has("explained")) [this.say, this.sayOfMap] = [speaker(language, data.method), speaker(language, this.method())];
    });
  }
  /** What made the maps that are seen; null where they are attention. */
  method() {
    return this.store.state.explained ? this.data.explanation.method : this.data.method;
  }
  /** What is told of the maps that are seen. */
  seen() {
    const { data } = this;
    if (!this.store.state.explained) return data;
    return { ...data, method: data.explanation.method, maps: { ...data.maps, error: data.explanation.error, grouped: false } };
  }
  /** Explains in place of showing attention, or goes back. */
  explain(wanted) {
    if (this.data.explanation) this.store.set({ explained: wanted, ...(wanted ? { layer: null, head: null, step: null } : {}) });
  }
  /** Single layers, heads or steps that the page does not store: a kernel gives what was kept, a prediction needs no maps. */
  finer(axis) {
    const { data, maps, kernel } = this;
    if (!(kernel && this.kept(axis)) && !(axis === "step" && data.previews)) return [];
    const stored = maps.stored(axis).filter(({ members }) => members === 1).map(({ first }) => first);
    return data.labels[axis].map((label, first) => ({ name: String(label), first, members: 1 })).filter(({ first }) => !stored.includes(first));
  }
  /** The steps that were watched and ran, each with its index in the choices of steps; none where some have no choice. */
  singleSteps() {
    const { data, maps } = this;
    const ran = new Map(data.steps.map((step) => [step.step, step]));
    const choices = maps.choices("step");
    const steps = data.labels.step.map((label, first) => ({ ...ran.get(label), choice: choices.findIndex((one) => one.members === 1 && one.first === first) })).filter(({ step }) => step !== undefined);
    return steps.every(({ choice }) => choice >= 0) ? steps : [];
  }
  table() {
    return this.tables[this.store.state.colors];
  }
  nameOf = (index) => {
    const { words, kinds } = this.data;
    return index < words.length ? words[index].text : this.say(kinds[index - words.length].name);
  };
  /** The subjects whose maps are seen: the one that is hovered, or all that are pinned. */
  shown() {
    const { hovered, pinned, expert } = this.store.state;
    const words = (index) => !this.method() || index < this.data.words.length; // methods explain these alone
    return (hovered !== null ? [hovered] : expert ? [] : pinned).filter(words);
  }
  expert() {
    const { hovered, expert } = this.store.state;
    return hovered === null ? expert : null;
  }
  shade(index) {
    return PIN_COLORS[this.store.state.pinned.indexOf(index) % PIN_COLORS.length] ?? PIN_COLORS[0];
  }
  latentOf(frame) {
    return this.data.spans.findIndex(([first, last]) => frame >= first && frame <= last);
  }
  sliceName(chosen = this.store.state, say = this.say) {
    const { maps } = this;
    const named = AXES.filter((axis) => chosen[axis] !== null).map((axis) => {
      const choice = maps.choices(axis)[chosen[axis]];
      return say(choice.members > 1 ? `several.${axis}` : `one.${axis}`, choice.name);
    });
    return named.length ? named.join(", ") : say("meanOfAll");
  }
  /** Whether the capture kept some axes together, also where the page has no room for them. */
  kept(...axes) {
    return this.data.keep.some((set) => axes.every((axis) => set.includes(axis)));
  }
  /** Asks the kernel, where there is one, for a selection that the page lacks; after an error it may be asked again. */
  async fetchSlice() {
    const { kernel, maps, store } = this;
    const chosen = Object.fromEntries(AXES.map((axis) => [axis, store.state[axis]]));
    const key = maps.key(chosen);
    if (!kernel || maps.find(chosen) || this.asked.get(key) === null) return;
    this.asked.set(key, null);
    const places = (axis) => (chosen[axis] === null ? null : [maps.choices(axis)[chosen[axis]].first, maps.choices(axis)[chosen[axis]].members]);
    const { error, levels, units, frames } = await kernel.ask(Object.fromEntries(AXES.map((axis) => [axis, places(axis)])));
    if (error) this.asked.set(key, error);
    else {
      maps.add(chosen, levels, units);
      if (frames) this.frames.set(key, frames);
    }
    store.set({ arrived: store.state.arrived + 1 });
  }
  /** Why a selection has no map. */
  absence() {
    const { kernel, maps, store, say } = this;
    return this.asked.get(maps.key(store.state)) ?? say(kernel ? "asking" : "absent");
  }
  /** Share of all attention that a subject gets in the selection, and the latent frame of its peak. */
  summary(index) {
    const map = this.maps.at(index, this.store.state, null);
    if (!map) return { share: 0, peakAt: 0 };
    let [sum, top, peakAt] = [0, -1, 0];
    map.levels.forEach((level, i) => {
      sum += level;
      if (level > top) [top, peakAt] = [level, Math.floor(i / this.maps.cells)];
    });
    return { share: (sum * map.unit) / map.levels.length, peakAt };
  }
  /** Words and what follows them by their mean mass in a region of one latent frame: [{ index, mass, lift }]. */
  rank({ row, column, high, wide }, latent) {
    const { data, maps } = this;
    const found = [];
    [...data.words, ...(this.method() ? [] : data.kinds)].forEach((_, index) => {
      const map = maps.at(index, this.store.state, latent);
      if (!map) return;
      let sum = 0;
      for (let r = row; r < row + high; r += 1) for (let c = column; c < column + wide; c += 1) sum += map.levels[r * maps.columns + c];
      const mass = (sum * map.unit) / (high * wide);
      const mean = this.summary(index).share;
      found.push({ index, mass, lift: mean > 0 ? mass / mean : 0 });
    });
    return found.sort((a, b) => (this.method() ? b.lift - a.lift : b.mass - a.mass));
  }
  expertMap(latent) {
    const { layer, expert } = this.store.state.expert;
    const { cells, frames } = this.maps;
    const from = ((layer * this.data.load[0].length + expert) * frames + latent) * cells;
    return this.where.subarray(from, from + cells);
  }
  /** The slice that words are read in for a token expert: its layer, or the group that has it, or the mean over all. */
  expertSlice() {
    const { layer } = this.store.state.expert;
    const found = this.maps.stored("layer").findIndex(({ first, members }) => first <= layer && layer < first + members);
    return { layer: found < 0 ? null : found, head: null, step: null };
  }
  /** How much more a word is read where a token expert works than anywhere: [{ index, lift }]. */
  expertReads() {
    const { maps, data } = this;
    const chosen = this.expertSlice();
    return data.words.map((_, index) => {
      const map = maps.at(index, chosen, null);
      if (!map) return { index, lift: 0 };
      let [joint, work, read] = [0, 0, 0];
      for (let latent = 0; latent < maps.frames; latent += 1) {
        this.expertMap(latent).forEach((level, i) => {
          const mass = map.levels[latent * maps.cells + i];
          joint += level * mass;
          work += level;
          read += mass;
        });
      }
      return { index, lift: work && read ? (joint * map.levels.length) / (work * read) : 0 };
    }).sort((a, b) => b.lift - a.lift);
  }
  async loadFrames() {
    const stored = this.data.video.frames ?? [];
    const decode = async (frame, i) => {
      this.pictures[i] = await decoded(frame);
    };
    await Promise.all(stored.slice(0, 1).map(decode)); // seen at once; the others come while one looks
    this.store.set({ ready: true });
    await new Promise(requestAnimationFrame);
    for (let i = 1; i < stored.length; i += DECODED_TOGETHER) {
      await Promise.all(stored.slice(i, i + DECODED_TOGETHER).map((frame, k) => decode(frame, i + k)));
    }
    const previews = this.data.previews ?? [];
    this.previews = await Promise.all(previews.map((video) => video && Promise.all(video.map(decoded))));
    if (stored.length > 1 || previews.length) this.store.set({ complete: true });
  }
  /** What is drawn of a frame: of the finished video, or of what the chosen step predicted; several steps predicted none. */
  picture(frame, step = this.store.state.step) {
    const choice = this.store.state.predicted && step !== null ? this.maps.choices("step")[step] : null;
    const pictures = choice?.members === 1 ? this.previews[choice.first] : null;
    return pictures ? pictures[this.latentOf(frame)] : this.pictures[frame];
  }
  drawFrame(context, frame, width, height) {
    this.drawPicture(context, this.picture(frame), width, height);
  }
  drawPicture(context, picture, width, height) {
    if (picture) {
      context.imageSmoothingEnabled = width < this.data.video.width;
      context.drawImage(picture, 0, 0, width, height);
    } else {
      context.fillStyle = "#606060";
      context.fillRect(0, 0, width, height);
    }
  }
}

export async function makePage(data, kernel = null) {
  return new Page(data, await Maps.read(data), kernel);
}

/** What stands above all views: the name, one line of facts, the language. */
export function mountHeader(page, title) {
  const { store } = page;
  const tongue = (name, text) => h("button", { lang: name, "data-id": name, onclick: () => store.set({ language: name }) }, text);
  const tongues = [tongue("en", "English"), tongue("zh", "中文")];
  const name = h("span");
  const askBranch = () => {
    page.kernel.branch(branch.value);
    branch.value = page.data.branch; // what is drawn, until the other one is there
  };
  const [branch, branchLabel] = [h("select", { "data-id": "branch", onchange: askBranch }), h("span")];
  const several = page.kernel && page.data.branches.length > 1;
  store.on((changed, state) => {
    if (!changed.has("language")) return;
    name.textContent = page.say(title);
    branchLabel.textContent = page.say("branch");
    options(branch, page.data.branches.map((one) => [one, page.say(`branches.${one}`)]), page.data.branch);
    tongues.forEach((button) => button.setAttribute("aria-pressed", String(button.lang === state.language)));
  });
  return h("header", { class: "wv-top" },
    h("div", {}, h("h1", {}, h("span", { class: "wv-brand" }, "wanviz"), " ", name), h("p", { class: "wv-soft", "data-id": "facts" }, title === "title" ? page.data.facts : "")),
    several ? h("label", { class: "wv-knob" }, branchLabel, branch) : null,
    h("div", { class: "wv-languages", role: "group", "aria-label": "Language 语言" }, ...tongues));
}

/** Draws the views of a trace into an element; returns what a test or a host may want to know. */
export async function mountDashboard(root, data, { language = "en", keys = root, kernel = null } = {}) {
  const page = await makePage(data, kernel);
  const { store } = page;
  const player = mountPlayer(page);
  const titled = [];
  const title = (tag, name, attributes = {}) => {
    const element = h(tag, attributes);
    titled.push([element, name]);
    return element;
  };
  const panel = (name, view) => h("figure", { "data-panel": name }, title("figcaption", name), view);
  const record = h("dl", { "data-id": "record" });
  for (const [name, value] of data.record) {
    const said = h("dd");
    addText(said, value, "wv-value");
    record.append(h("dt", {}, name), said);
  }
  const reading = h("ul", { class: "wv-reading", "data-id": "reading" });
  root.classList.add("wv");
  root.append(
    mountHeader(page, "title"),
    h("main", {},
      h("section", { class: "wv-card" }, title("h2", "prompt"), player.words),
      h("section", { class: "wv-card" }, title("h2", "video", { class: "wv-unseen" }), player.stage),
      ...(data.method ? [] : [
        h("section", { class: "wv-card" }, title("h2", "denoising"), mountDenoising(page)),
        h("section", { class: "wv-card" }, title("h2", "heads"), mountHeads(page)),
        h("section", { class: "wv-panels" }, title("h2", "inside"),
          panel("frames", mountFrames(page)), panel("noise", mountNoise(page)), panel("load", mountLoad(page))),
      ]),
      h("section", { class: "wv-card" }, title("h2", "about"), record, reading)));
  store.on((changed, state) => {
    if (changed.has("language") || changed.has("explained")) {
      const lines = [...(data.video.frames ? [] : [page.say("notDecoded")]), ...page.sayOfMap("reading", page.seen())];
      reading.replaceChildren(...lines.map((line) => h("li", {}, line)));
    }
    if (!changed.has("language")) return;
    for (const [element, name] of titled) element.textContent = page.say(name);
    root.lang = state.language;
    if (keys === document) document.documentElement.lang = state.language;
  });
  keys.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !player.key(event)) return;
    event.preventDefault();
    event.stopPropagation();
  });
  store.on((changed) => changed.has("ready") && (root.dataset.drawn = "true"));
  store.set({ language });
  await page.loadFrames();
  return page;
}
