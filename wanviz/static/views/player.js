// The video with its words: hover one and its map plays over the video; drag over the video and its words are ranked.
import { AXES, Heat, PIN_COLORS, SLICE, addText, clamp, colorAt, digits, h, icon, middle, options, percent, shortSpan } from "./kit.js";

const SHAPES = { play: "M7 4v16l13-8z", pause: "M6 4h4v16H6zM14 4h4v16h-4z", back: "M6 5h3v14H6zM20 5v14l-10-7z", forth: "M15 5h3v14h-3zM4 5v14l10-7z" };
const SPEEDS = [0.25, 0.5, 1, 2];
const HEAT_PIXELS = 240; // across, at most: maps are coarse

export function mountPlayer(page) {
  const { data, maps, store } = page;
  const state = store.state;
  const { width, height } = data.video;
  const last = data.video.count - 1;
  const heatWidth = Math.min(width, HEAT_PIXELS);
  const heat = new Heat(maps.rows, maps.columns, heatWidth, Math.max(1, Math.round((height * heatWidth) / width)));

  // ---- what is seen -------------------------------------------------------------------------------
  const canvas = h("canvas", { class: `wv-canvas${width < 320 ? " wv-crisp" : ""}`, "data-id": "screen", width, height, role: "img", tabindex: 0 });
  const box = h("div", { class: "wv-region", hidden: true });
  const readout = h("div", { class: "wv-readout", "data-id": "readout", "aria-hidden": "true" });
  const playShape = icon(SHAPES.play);
  const play = h("button", { "data-id": "play", onclick: () => store.set({ playing: !state.playing && last > 0 }) }, playShape);
  const back = h("button", { "data-id": "back", onclick: () => step(-1) }, icon(SHAPES.back));
  const forth = h("button", { "data-id": "forth", onclick: () => step(1) }, icon(SHAPES.forth));
  const scrub = h("input", { type: "range", "data-id": "scrub", min: 0, max: last, step: 1, oninput: () => go(Number(scrub.value)) });
  const where = h("output", { "data-id": "where" });
  const mark = h("button", { class: "wv-mark", "data-id": "mark", onclick: () => (state.region ? store.set({ region: null }) : startRegion()) });
  const strip = h("div", { class: "wv-strip", "data-id": "strip" });
  const thumbs = [];

  const modes = [false, true].map((explained) => h("button", {
    "data-id": explained ? "explain" : "attention", disabled: explained && !data.explanation, onclick: () => page.explain(explained),
  }));
  const modeGroup = h("div", { class: "wv-modes", role: "group", hidden: Boolean(data.method) }, ...modes);
  const modeNote = h("p", { class: "wv-soft wv-mode-note", "data-id": "mode-note", "aria-live": "polite" });
  const nowWord = h("p", { class: "wv-now-word", "data-id": "now-word" });
  const nowText = h("p", { "data-id": "now-text" });
  const bar = h("canvas", { class: "wv-bar", width: 256, height: 1, "aria-hidden": "true" });
  const ends = ["low", "middle", "high"].map((id) => h("span", { "data-id": id }));
  const unit = h("p", { class: "wv-unit", "data-id": "unit" });
  const ranks = h("div", { class: "wv-ranks", "data-id": "ranks", hidden: true, "aria-live": "polite" });
  const shares = h("div", { class: "wv-shares", role: "img" });
  const shareList = h("ul", { class: "wv-share-list" });
  const knobs = {};
  const labels = {};
  const knob = (name, element) => {
    knobs[name] = element;
    labels[name] = h("span");
    return h("label", { class: "wv-knob" }, labels[name], element);
  };
  const pick = (axis) => h("select", { "data-id": axis, onchange: (event) => store.set({ [axis]: event.target.value === "" ? null : Number(event.target.value) }) });
  const set = (name, read) => ({ onchange: (event) => store.set({ [name]: read(event.target.value) }), "data-id": name });
  const transport = h("div", { class: "wv-transport" }, back, play, forth, scrub, where, mark);
  const player = h("div", { class: "wv-player" }, h("div", { class: "wv-screen" }, canvas, box, readout), transport, strip);
  const sharesTitle = h("h3");
  const keys = h("p", { class: "wv-soft wv-keys" });
  const side = h("div", { class: "wv-side" },
    modeGroup,
    h("div", { class: "wv-now", "aria-live": "polite" }, nowWord, nowText),
    h("div", { class: "wv-legend" }, bar, h("div", { class: "wv-ends" }, ...ends), unit),
    modeNote,
    h("div", { class: "wv-knobs" },
      ...AXES.map((axis) => knob(axis, pick(axis))),
      knob("scale", h("select", set("scale", String))),
      knob("colors", h("select", set("colors", String))),
      knob("speed", h("select", set("speed", Number))),
      knob("opacity", h("input", { type: "range", min: 0, max: 100, value: 100, "data-id": "opacity", oninput: (event) => store.set({ opacity: event.target.value / 100 }) }))),
    ranks, sharesTitle, shares, shareList, keys);

  // ---- words ----------------------------------------------------------------------------------------
  const sentence = h("div", { class: "wv-sentence", "data-id": "prompt", dir: "auto", tabindex: 0, role: "group" });
  const kinds = h("span", { "data-id": "kinds" });
  const hint = h("p", { class: "wv-soft" });
  const cut = h("p", { class: "wv-warning", "data-id": "cut", hidden: data.cut === null });
  const behind = h("span");
  const behindWords = h("div", { class: "wv-behind" }, behind, kinds);
  const chips = [];

  function chip(index) {
    const enter = () => store.set({ hovered: index, expert: null });
    const leave = () => state.hovered === index && store.set({ hovered: null });
    const button = h("button", {
      class: "wv-chip", "data-index": index, "aria-pressed": "false",
      onpointerenter: (event) => event.pointerType !== "touch" && enter(),
      onpointerleave: leave,
      onfocus: () => button.matches(":focus-visible") && enter(),
      onblur: leave,
      onclick: () => {
        const without = state.pinned.filter((pinned) => pinned !== index);
        const pinned = without.length < state.pinned.length ? without : [...state.pinned, index].slice(-PIN_COLORS.length);
        store.set({ pinned, expert: null });
      },
    });
    chips.push(button);
    return button;
  }

  function buildPrompt() {
    const letters = Array.from(data.prompt); // characters as Python counts them: an emoji is one
    const seen = data.cut ?? letters.length;
    const passage = (start, stop) => {
      addText(sentence, letters.slice(start, Math.min(stop, seen)).join(""), "wv-between");
      if (stop > seen) addText(sentence, letters.slice(Math.max(start, seen), stop).join(""), "wv-lost");
    };
    let at = 0;
    data.words.forEach((word, index) => {
      passage(at, word.start);
      const button = chip(index);
      addText(button, word.text, "wv-letters");
      sentence.append(button);
      at = word.stop;
    });
    passage(at, letters.length);
    data.kinds.forEach((_, i) => kinds.append(chip(data.words.length + i)));
    if (/[\u3400-\u9fff]/.test(data.prompt)) sentence.lang = "zh";
  }

  function buildStrip() {
    const every = Math.ceil(data.spans.length / 9);
    data.spans.forEach((span, i) => {
      if (i % every) return;
      const small = Math.min(width, 192);
      const target = h("canvas", { width: small, height: Math.round((height * small) / width), class: width < 320 ? "wv-crisp" : "" });
      const button = h("button", { onclick: () => go(Math.min(middle(span), last)) }, target, h("span", {}, shortSpan(span)));
      thumbs.push({ button, target, span });
      strip.append(button);
    });
  }

  // ---- painting -------------------------------------------------------------------------------------
  function range(index) {
    const peak = maps.peak(index, state);
    if (state.scale === "all") return [0, Math.max(peak, ...(index < data.words.length ? data.words.map((_, word) => maps.peak(word, state)) : []))];
    if (state.scale === "word") return [0, peak];
    const { levels, unit: size } = maps.at(index, state, null);
    return [size * levels.reduce((a, b) => Math.min(a, b), 255), peak];
  }

  function paint(latent) {
    const alpha = data.alpha;
    if (page.expert()) heat.one({ levels: page.expertMap(latent), unit: 1 / data.where.most }, [0, 1], page.table(), state.opacity, alpha);
    else {
      const shown = page.shown().filter((index) => maps.at(index, state, latent));
      if (!shown.length) return false;
      const found = shown.map((index) => maps.at(index, state, latent));
      if (shown.length === 1) heat.one(found[0], range(shown[0]), page.table(), state.opacity, alpha);
      else heat.several(found, shown.map((index) => maps.peak(index, state)), shown.map((index) => page.shade(index)), state.opacity, alpha[1]);
    }
    return true;
  }

  function drawOn(target, frame) {
    const context = target.getContext("2d");
    context.globalCompositeOperation = "source-over";
    page.drawFrame(context, frame, target.width, target.height);
    if (!paint(page.latentOf(frame))) return;
    context.globalCompositeOperation = "saturation"; // the video's colours could be taken for the map's
    context.fillStyle = "#808080";
    context.fillRect(0, 0, target.width, target.height);
    context.globalCompositeOperation = "source-over";
    context.imageSmoothingEnabled = heat.canvas.width !== target.width;
    context.drawImage(heat.canvas, 0, 0, target.width, target.height);
  }

  function draw() {
    const say = page.sayOfMap;
    drawOn(canvas, state.frame);
    scrub.value = state.frame;
    where.textContent = say("frame", state.frame, last);
    scrub.setAttribute("aria-valuetext", say("span", [state.frame, state.frame]));
    for (const { button, span } of thumbs) button.setAttribute("aria-current", String(state.frame >= span[0] && state.frame <= span[1]));
  }

  function drawAll() {
    draw();
    for (const { target, span } of thumbs) drawOn(target, Math.min(middle(span), last));
    const shown = page.shown();
    for (const button of chips) {
      const index = Number(button.dataset.index);
      const place = state.pinned.indexOf(index);
      button.classList.toggle("wv-active", shown.includes(index));
      button.setAttribute("aria-pressed", String(place >= 0));
      const several = place >= 0 && state.pinned.length > 1;
      button.classList.toggle("wv-shaded", several);
      button.style.setProperty("--pin", several ? `rgb(${page.shade(index).join(" ")})` : "");
    }
    describe(shown);
  }

  function describe(shown) {
    const say = page.sayOfMap;
    const said = (word, text, under, scale = [null, null]) => {
      nowWord.textContent = word;
      nowText.textContent = text;
      unit.textContent = under;
      const [low, high] = scale;
      [low, low === null ? null : (low + high) / 2, high].forEach((value, i) => (ends[i].textContent = value === null ? "" : digits(value)));
      canvas.setAttribute("aria-label", `${say("video")}: ${word}`);
    };
    bar.hidden = shown.length > 1;
    const expert = page.expert();
    modeNote.hidden = Boolean(data.method || expert) || (Boolean(data.explanation) && !state.explained);
    if (expert) {
      said(say("expert", data.layers[expert.layer], expert.expert), say("expertText"), say("expertUnit"), [0, 1]);
    } else if (!shown.length) said(say("nothing"), say("nothingText"), say("noUnit"));
    else if (!maps.find(state)) said(shown.map(page.nameOf).join(", "), page.absence(), "");
    else if (shown.length > 1) said(say("together", shown.length), say("togetherText"), "");
    else if (!maps.at(shown[0], state, 0)) said(page.nameOf(shown[0]), say("missing"), say("missing"));
    else {
      const [index] = shown;
      const { share, peakAt } = page.summary(index);
      const text = say("now", percent(share), digits(maps.peak(index, state)), say("span", data.spans[peakAt]));
      said(page.nameOf(index), text, say("unit", page.sliceName(state, say)), range(index));
    }
  }

  function showShares() {
    const say = page.sayOfMap;
    sharesTitle.hidden = shares.hidden = shareList.hidden = Boolean(page.method()) || !maps.find(state);
    const all = [...data.words, ...data.kinds].map((_, index) => page.summary(index).share);
    const most = Math.max(1e-9, ...all.slice(0, data.words.length));
    for (const button of chips) {
      const share = all[Number(button.dataset.index)];
      button.style.setProperty("--share", Math.min(1, share / most));
      button.title = page.method() ? "" : percent(share);
    }
    const sum = (list) => list.reduce((total, share) => total + share, 0);
    const parts = [["words", sum(all.slice(0, data.words.length))], ...data.kinds.map((kind, i) => [kind.name, all[data.words.length + i]])];
    const rest = 1 - sum(all);
    if (rest > 5e-4) parts.splice(1, 0, ["other", rest]);
    shares.replaceChildren(...parts.map(([name, share]) => {
      const piece = h("span", { class: `wv-of-${name}` });
      piece.style.flex = `${share} 0 0`;
      return piece;
    }));
    shareList.replaceChildren(...parts.map(([name, share]) => h("li", {}, h("i", { class: `wv-key wv-of-${name}` }), `${say(name)} ${percent(share)}`)));
    shares.setAttribute("aria-label", parts.map(([name, share]) => `${say(name)} ${percent(share)}`).join(", "));
  }

  // ---- a region of the video --------------------------------------------------------------------------
  function startRegion() {
    const high = Math.max(1, Math.round(maps.rows / 4));
    const wide = Math.max(1, Math.round(maps.columns / 4));
    const [row, column] = [Math.floor((maps.rows - high) / 2), Math.floor((maps.columns - wide) / 2)];
    store.set({ region: { row, column, high, wide } });
    canvas.focus();
  }

  function moveRegion(event) {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!state.region || !(down || right)) return false;
    let { row, column, high, wide } = state.region;
    if (event.shiftKey) [high, wide] = [clamp(high + down, 1, maps.rows - row), clamp(wide + right, 1, maps.columns - column)];
    else [row, column] = [clamp(row + down, 0, maps.rows - high), clamp(column + right, 0, maps.columns - wide)];
    store.set({ region: { row, column, high, wide } });
    return true;
  }

  function showRegion() {
    const say = page.sayOfMap;
    const region = state.region;
    mark.textContent = say("region");
    mark.title = say(region ? "regionOff" : "regionTitle");
    mark.setAttribute("aria-pressed", String(Boolean(region)));
    box.hidden = ranks.hidden = !region;
    if (!region) return;
    const { row, column, high, wide } = region;
    const part = (count, of) => `${(100 * count) / of}%`;
    Object.assign(box.style, { left: part(column, maps.columns), top: part(row, maps.rows), width: part(wide, maps.columns), height: part(high, maps.rows) });
    const latent = page.latentOf(state.frame);
    const found = page.rank(region, latent);
    const length = ({ mass, lift }) => (page.method() ? lift : mass); // what they are sorted by
    const top = Math.max(1e-9, ...found.map(length));
    const lines = found.map((one) => {
      const { index, mass, lift } = one;
      const fill = h("i", { class: "wv-rank-bar" });
      fill.style.width = `${(100 * length(one)) / top}%`;
      const name = h("span", { class: "wv-rank-word" });
      addText(name, page.nameOf(index), "wv-letters");
      return h("li", { "data-index": index }, name, h("span", { class: "wv-rank-line" }, fill), h("span", { class: "wv-rank-text" }, say("regionLine", percent(mass), digits(lift))));
    });
    const rows = shortSpan([row, row + high - 1]);
    const columns = shortSpan([column, column + wide - 1]);
    ranks.replaceChildren(
      h("h3", {}, say("regionTitle")),
      h("p", { class: "wv-soft" }, `${say("regionWhere", rows, columns, say("span", data.spans[latent]))}; ${page.sliceName(state, say)}. ${say("regionHint")}`),
      maps.find(state) ? h("ol", { tabindex: 0, "aria-label": say("regionTitle") }, ...lines) : h("p", {}, page.absence()));
  }

  function cellAt(event) {
    const at = canvas.getBoundingClientRect();
    return [
      clamp(Math.floor(((event.clientY - at.top) / at.height) * maps.rows), 0, maps.rows - 1),
      clamp(Math.floor(((event.clientX - at.left) / at.width) * maps.columns), 0, maps.columns - 1),
    ];
  }

  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = cellAt(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = cellAt(event);
    if (from && (row !== from[0] || column !== from[1] || state.region)) {
      const region = { row: Math.min(row, from[0]), column: Math.min(column, from[1]), high: Math.abs(row - from[0]) + 1, wide: Math.abs(column - from[1]) + 1 };
      store.set({ region, playing: false });
    }
    readout.textContent = "";
    const [index] = page.shown();
    const latent = page.latentOf(state.frame);
    const map = index === undefined ? null : maps.at(index, state, latent);
    if (map) readout.textContent = page.sayOfMap("readout", row, column, page.sayOfMap("span", data.spans[latent]), digits(map.levels[row * maps.columns + column] * map.unit));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && !state.region) {
      const [row, column] = from;
      store.set({ region: { row, column, high: 1, wide: 1 }, playing: false });
    }
    from = null;
    canvas.releasePointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerleave", () => (readout.textContent = ""));

  // ---- time -------------------------------------------------------------------------------------------
  const go = (frame) => store.set({ frame: (frame + last + 1) % (last + 1), playing: false });
  const step = (by) => go(state.frame + by);
  let due = 0;
  function tick(now) {
    if (!state.playing || !canvas.isConnected) return;
    if (now >= due) {
      due = now + 1000 / (data.fps * state.speed);
      store.set({ frame: (state.frame + 1) % (last + 1) });
    }
    requestAnimationFrame(tick);
  }

  function showPlaying() {
    playShape.firstChild.setAttribute("d", state.playing ? SHAPES.pause : SHAPES.play);
    play.setAttribute("aria-label", page.sayOfMap(state.playing ? "pause" : "play"));
    if (state.playing) requestAnimationFrame(tick);
  }

  function speak() {
    const say = page.sayOfMap;
    for (const [name, label] of Object.entries(labels)) label.textContent = say(name);
    for (const [name, element] of Object.entries({ back, forth, scrub })) element.setAttribute("aria-label", say(name));
    for (const { button, span } of thumbs) button.setAttribute("aria-label", say("span", span));
    for (const axis of AXES) {
      const list = maps.choices(axis);
      options(knobs[axis], [["", say("all")], ...list.map((choice, i) => [i, choice.name])], state[axis] ?? "");
      knobs[axis].parentElement.hidden = !list.length;
    }
    options(knobs.scale, Object.entries(say("scales")), state.scale);
    options(knobs.colors, Object.keys(data.colors).map((name) => [name, name]), state.colors);
    options(knobs.speed, SPEEDS.map((speed) => [speed, `${speed} ×`]), state.speed);
    chips.filter((button) => Number(button.dataset.index) >= data.words.length).forEach((button) => (button.textContent = page.nameOf(Number(button.dataset.index))));
    hint.textContent = say("hint");
    behind.textContent = say("behind");
    const left = page.method() && behindWords.contains(document.activeElement);
    behindWords.hidden = Boolean(page.method());
    if (left) modes[1].focus(); // what had the focus is gone
    modes.forEach((button, i) => {
      button.textContent = say(i ? "explain" : "attention");
      button.title = say(i ? "explainTitle" : "attentionTitle");
      button.setAttribute("aria-pressed", String(Boolean(i) === state.explained));
    });
    modeGroup.setAttribute("aria-label", say("mode"));
    modeNote.textContent = say(data.explanation ? "explainNote" : `explainNone.${data.unexplained}`);
    keys.textContent = say(data.explanation ? "keysExplain" : "keys");
    sharesTitle.textContent = say("shares");
    cut.textContent = data.cut === null ? "" : say("cut", data.cut);
    sentence.setAttribute("aria-label", say("prompt"));
  }

  function paintBar() {
    const context = bar.getContext("2d");
    for (let i = 0; i < 256; i += 1) {
      context.fillStyle = colorAt(page.table(), i / 255);
      context.fillRect(i, 0, 1, 1);
    }
  }

  buildPrompt();
  buildStrip();
  store.on((changed) => {
    const any = (...names) => names.some((name) => changed.has(name));
    if (any("language", "explained")) speak();
    for (const axis of AXES) if (changed.has(axis)) knobs[axis].value = state[axis] ?? "";
    if (any("language", "playing")) showPlaying();
    if (any("colors")) paintBar();
    if (any("language", ...SLICE)) showShares();
    if (any("region", "language", "frame", ...SLICE)) showRegion();
    if (any("hovered", "pinned", "expert", "opacity", "scale", "colors", "language", "ready", "complete", "predicted", ...SLICE)) drawAll();
    else if (any("frame")) draw();
  });
  paintBar();

  return {
    words: h("div", {}, hint, sentence, cut, behindWords),
    stage: h("div", { class: "wv-stage" }, player, side),
    canvas,
    /** Keys of the whole page; true where one was used. */
    key(event) {
      const typing = event.target.closest?.("input, select");
      if (event.target === canvas && moveRegion(event)) return true;
      if (event.key === " " && !event.target.closest?.("button, select, input[type=checkbox]")) store.set({ playing: !state.playing && last > 0 });
      else if (event.key === "ArrowLeft" && !typing) step(-1);
      else if (event.key === "ArrowRight" && !typing) step(1);
      else if (event.key.toLowerCase() === "e" && !typing && data.explanation) page.explain(!state.explained);
      else if (event.key.toLowerCase() === "r" && !typing) state.region ? store.set({ region: null }) : startRegion();
      else if (event.key === "Escape") store.set({ pinned: [], hovered: null, expert: null, region: null });
      else return false;
      return true;
    },
  };
}
