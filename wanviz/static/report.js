"use strict";
// Draws a wanviz report from the JSON beside it. Untrusted text enters only through textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const [frames, rows, columns] = data.grid;
  const cells = rows * columns;
  const slots = data.layers.length + 1; // slot 0 is the mean over layers
  const levels = bytes(data.maps.levels); // [word or kind, slot, frame, row, column]
  const colors = bytes(data.colors);
  const subjects = [...data.words, ...data.kinds]; // what can be looked at, in the order of levels
  const state = { frame: 0, slot: 0, hovered: null, pinned: null, opacity: 1, scale: "word", playing: false };
  const canvas = $("screen");
  const heat = document.createElement("canvas");
  const { width, height } = data.video;
  const heatWidth = Math.min(width, 240);
  const heatHeight = Math.max(1, Math.round((height * heatWidth) / width));
  let pictures = [];
  let language = "en";

  const TEXT = {
    en: {
      title: "What each word did", prompt: "Prompt", video: "Video", layer: "Layer", scale: "Colour scale",
      opacity: "Opacity", inside: "Inside the model", frames: "Frames looking at frames",
      noise: "Noise experts over the steps", load: "Load of the token experts", about: "How this was made",
      hint: "Hover, focus or tap a word: its attention plays over the video. Click to keep it.",
      behind: "Behind the words, the model also reads:", shares: "Where the attention goes",
      keys: "Space plays, ← → step, Esc lets go of a word.",
      end_of_text: "end of text", padding: "padding", words: "words", other: "other tokens", other_words: "other words",
      mean: "mean over layers", numbered: (n) => `layer ${n}`, play: "Play", pause: "Pause",
      back: "One frame back", forth: "One frame on", scrub: "Frame", nothing: "No word chosen",
      nothingText: "The plain video. Choose a word above.",
      frame: (a, b) => `frame ${a} / ${b}`, span: (s) => (s[0] === s[1] ? `frame ${s[0]}` : `frames ${s[0]}–${s[1]}`),
      now: (share, peak, span) => `gets ${share} of all attention; peak ${peak} in ${span}`,
      missing: "not computed in this layer",
      unit: (where) => `attention mass (${where}): 1 would be all the attention of a place in the video`,
      noUnit: "attention mass: choose a word to see its scale",
      scales: { word: "this word: 0 to its peak", all: "all words: 0 to the highest peak", range: "this word: lowest to peak (stretched)" },
      readout: (r, c, s, m) => `row ${r}, column ${c}, ${s}: ${m}`,
      framesNote: (where) => `Row: the frames that look. Column: the frames they look at (${where}). Each row sums to 1.`,
      hatched: " Hatched: not computed.",
      pair: (a, b, m) => `${a} look at ${b}: ${m}`, notComputed: "not computed",
      noFrames: "Not captured: capture with frames=\"exact\".", noLoad: "Not captured: capture with routing=True.", noExperts: "This model has no token experts: its feed-forward layers are dense.",
      oneDenoiser: (n) => `${n} steps by one denoiser`, sampled: (e) => ` Sampled, standard errors up to ${e}.`,
      noise_: (h, l) => [`${h} steps by the high-noise expert`, `${l} by the low-noise expert`], sigma: "noise level sigma, by step",
      step: (s, v, e) => `step ${s}: sigma ${v}` + (e ? `, ${e}-noise expert` : ""),
      loadNote: (top) => `Row: layer. Column: token expert. Brightest: ${top} of the layer's expert places, of which every token has several (mean over steps).`,
      loadCell: (l, e, v) => `layer ${l}, token expert ${e}: ${v}`,
      cut: (n) => `The model saw only the first ${n} characters of this prompt; the rest is struck through.`,
      notDecoded: "The video itself was not decoded; only the maps are shown.",
      reading: (d) => [
        "A map is the share of attention that each place of the video gives to a word. It shows where the model looks, not what a word causes.",
        "A latent frame stands for several frames of the video, so a map stays the same for up to four frames; between the centres of its cells it is interpolated.",
        `Maps are stored in ${d.maps.most} steps per word and layer: a value differs from the trace by at most ${d.maps.error}.`,
        d.video.lossless ? "The frames are stored without loss." : "The frames are stored as WebP with small losses.",
      ],
    },
    zh: {
      title: "每个词做了什么", prompt: "提示词", video: "视频", layer: "层", scale: "色标", opacity: "不透明度",
      inside: "模型内部", frames: "帧与帧之间的注意力", noise: "各步的噪声专家", load: "词元专家的负载", about: "生成信息",
      hint: "把指针移到词上，或用键盘、手指选中它：它的注意力会显示在视频上。点击可固定。",
      behind: "在词之后，模型还会读到：", shares: "注意力去了哪里", keys: "空格键播放，← → 逐帧，Esc 取消固定。",
      end_of_text: "文本结束符", padding: "填充", words: "词", other: "其他词元", other_words: "其他词", mean: "各层平均",
      numbered: (n) => `第 ${n} 层`, play: "播放", pause: "暂停", back: "后退一帧", forth: "前进一帧", scrub: "帧",
      nothing: "未选词", nothingText: "这是原视频。请在上面选一个词。",
      frame: (a, b) => `第 ${a} / ${b} 帧`, span: (s) => (s[0] === s[1] ? `第 ${s[0]} 帧` : `第 ${s[0]}–${s[1]} 帧`),
      now: (share, peak, span) => `得到全部注意力的 ${share}；峰值 ${peak}，在${span}`, missing: "此层未计算",
      unit: (where) => `注意力质量（${where}）：1 表示视频中某处的全部注意力`, noUnit: "注意力质量：选一个词以查看色标",
      scales: { word: "本词：0 到峰值", all: "所有词：0 到最高峰值", range: "本词：最低到峰值（拉伸）" },
      readout: (r, c, s, m) => `第 ${r} 行，第 ${c} 列，${s}：${m}`,
      framesNote: (where) => `行：在看的帧；列：被看的帧（${where}）。每行之和为 1。`, hatched: "斜线：未计算。",
      pair: (a, b, m) => `${a}看${b}：${m}`, notComputed: "未计算",
      noFrames: "未采集：请用 frames=\"exact\" 采集。", noLoad: "未采集：请用 routing=True 采集。", noExperts: "这个模型没有词元专家：前馈层是稠密的。",
      oneDenoiser: (n) => `同一个去噪器 ${n} 步`, sampled: (e) => `抽样得到，标准误差不超过 ${e}。`,
      noise_: (h, l) => [`高噪声专家 ${h} 步`, `低噪声专家 ${l} 步`], sigma: "噪声水平 sigma，按步",
      step: (s, v, e) => `第 ${s} 步：sigma ${v}` + (e ? `，${e === "high" ? "高" : "低"}噪声专家` : ""),
      loadNote: (top) => `行：层；列：词元专家。最亮：该层专家名额的 ${top}，每个词元占若干名额（各步平均）。`,
      loadCell: (l, e, v) => `第 ${l} 层，词元专家 ${e}：${v}`,
      cut: (n) => `模型只看到了提示词的前 ${n} 个字符，其余部分已划去。`, notDecoded: "视频本身未解码，这里只显示注意力图。",
      reading: (d) => [
        "注意力图表示视频各处给某个词的注意力比例。它说明模型在看哪里，并不说明词导致了什么。",
        "一个潜在帧对应视频中的若干帧，因此注意力图最多四帧保持不变；格子中心之间为插值。",
        `每个词、每一层的注意力图以 ${d.maps.most} 级存储，与原数据最多相差 ${d.maps.error}。`,
        d.video.lossless ? "视频帧为无损存储。" : "视频帧以 WebP 存储，略有损失。",
      ],
    },
  };
  const t = (key, ...values) => (typeof TEXT[language][key] === "function" ? TEXT[language][key](...values) : TEXT[language][key]);

  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }
  const digits = (x) => (x === 0 ? "0" : x.toPrecision(2).includes("e") ? x.toExponential(1) : String(Number(x.toPrecision(2))));
  const percent = (x) => (x > 0 && x < 0.0005 ? "< 0.1 %" : `${(100 * x).toFixed(1)} %`);
  const layerName = (slot) => (slot ? t("numbered", data.layers[slot - 1]) : t("mean"));
  const nameOf = (index) => (index < data.words.length ? data.words[index].text : t(data.kinds[index - data.words.length].name));
  const active = () => state.hovered ?? state.pinned;

  // ---- maps -------------------------------------------------------------------------------------
  const latentOf = (frame) => data.spans.findIndex(([first, last]) => frame >= first && frame <= last);
  const mapAt = (index, slot, latent) => {
    const from = ((index * slots + slot) * frames + latent) * cells;
    return levels.subarray(from, from + cells);
  };
  const isMissing = (index, slot) => mapAt(index, slot, 0)[0] === data.maps.missing;

  function range(index, slot) {
    const unit = data.maps.unit[index][slot];
    if (state.scale === "all") {
      const peaks = data.words.map((_, word) => data.maps.unit[word][slot] * data.maps.most);
      return [0, Math.max(unit * data.maps.most, ...(index < data.words.length ? peaks : [0]))];
    }
    if (state.scale === "word") return [0, unit * data.maps.most];
    const from = (index * slots + slot) * frames * cells;
    return [unit * levels.subarray(from, from + frames * cells).reduce((a, b) => Math.min(a, b), 255), unit * data.maps.most];
  }

  function neighbours(count, pixels) {
    return Array.from({ length: pixels }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * count) / pixels - 0.5, 0), count - 1);
      const first = Math.floor(at);
      return [first, Math.min(first + 1, count - 1), at - first];
    });
  }
  const down = neighbours(rows, heatHeight);
  const across = neighbours(columns, heatWidth);

  function paintHeat(index, latent) {
    const context = heat.getContext("2d");
    const image = context.createImageData(heatWidth, heatHeight);
    const map = mapAt(index, state.slot, latent);
    const unit = data.maps.unit[index][state.slot];
    const [low, high] = range(index, state.slot);
    const factor = high > low ? 1 / (high - low) : 0;
    let at = 0;
    for (const [r0, r1, wr] of down) {
      for (const [c0, c1, wc] of across) {
        const upper = map[r0 * columns + c0] * (1 - wc) + map[r0 * columns + c1] * wc;
        const lower = map[r1 * columns + c0] * (1 - wc) + map[r1 * columns + c1] * wc;
        const place = Math.min(Math.max(((upper * (1 - wr) + lower * wr) * unit - low) * factor, 0), 1);
        const color = Math.round(place * 255) * 3;
        image.data[at++] = colors[color];
        image.data[at++] = colors[color + 1];
        image.data[at++] = colors[color + 2];
        image.data[at++] = Math.round(255 * state.opacity * (data.alpha[0] + (data.alpha[1] - data.alpha[0]) * place));
      }
    }
    context.putImageData(image, 0, 0);
  }

  function drawOn(target, frame) {
    const context = target.getContext("2d");
    if (pictures[frame]) context.drawImage(pictures[frame], 0, 0, target.width, target.height);
    else {
      context.fillStyle = "#606060";
      context.fillRect(0, 0, target.width, target.height);
    }
    const index = active();
    if (index === null || isMissing(index, state.slot)) return;
    context.globalCompositeOperation = "saturation"; // the video's colours could be taken for the map's
    context.fillStyle = "#808080";
    context.fillRect(0, 0, target.width, target.height);
    context.globalCompositeOperation = "source-over";
    paintHeat(index, latentOf(frame));
    context.imageSmoothingEnabled = heatWidth !== target.width;
    context.drawImage(heat, 0, 0, target.width, target.height);
  }

  // ---- player -----------------------------------------------------------------------------------
  const last = data.video.count - 1;
  const middle = ([first, end]) => first + ((end - first + 1) >> 1);
  const strip = [];

  function draw() {
    drawOn(canvas, state.frame);
    const latent = latentOf(state.frame);
    $("scrub").value = state.frame;
    $("where").textContent = t("frame", state.frame, last);
    $("scrub").setAttribute("aria-valuetext", t("span", [state.frame, state.frame]));
    for (const { button, span } of strip) {
      button.setAttribute("aria-current", String(state.frame >= span[0] && state.frame <= span[1]));
    }
    canvas.dataset.latent = latent;
  }

  function drawAll() {
    draw();
    for (const { target, span } of strip) drawOn(target, Math.min(middle(span), last));
    const index = active();
    for (const chip of document.querySelectorAll(".chip")) {
      chip.classList.toggle("active", Number(chip.dataset.index) === index);
      chip.setAttribute("aria-pressed", String(Number(chip.dataset.index) === state.pinned));
    }
    describe(index);
  }

  function describe(index) {
    const chosen = index !== null;
    $("now-word").textContent = chosen ? nameOf(index) : t("nothing");
    $("low").textContent = $("middle").textContent = $("high").textContent = "";
    canvas.setAttribute("aria-label", chosen ? `${t("video")}: ${nameOf(index)}` : t("video"));
    if (!chosen) {
      $("now-text").textContent = t("nothingText");
      $("unit").textContent = t("noUnit");
      return;
    }
    if (isMissing(index, state.slot)) {
      $("now-text").textContent = $("unit").textContent = t("missing");
      return;
    }
    const { shares, peaks } = subjects[index];
    const [low, high] = range(index, state.slot);
    $("now-text").textContent = t("now", percent(shares[state.slot]), digits(data.maps.unit[index][state.slot] * data.maps.most), t("span", data.spans[peaks[state.slot]]));
    $("low").textContent = digits(low);
    $("middle").textContent = digits((low + high) / 2);
    $("high").textContent = digits(high);
    $("unit").textContent = t("unit", layerName(state.slot));
  }

  function go(frame) {
    state.frame = (frame + last + 1) % (last + 1);
    draw();
  }

  let due = 0;
  function tick(now) {
    if (!state.playing) return;
    if (now >= due) {
      due = now + 1000 / data.fps;
      go(state.frame + 1);
    }
    requestAnimationFrame(tick);
  }
  function play(on) {
    state.playing = on && last > 0;
    $("play-shape").setAttribute("d", state.playing ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M7 4v16l13-8z");
    $("play").setAttribute("aria-label", t(state.playing ? "pause" : "play"));
    if (state.playing) requestAnimationFrame(tick);
  }

  // ---- words ------------------------------------------------------------------------------------
  const CONTROL = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;

  function addText(parent, text, name) {
    // invisible and text-turning characters are shown by their number, so that none does its work
    for (const part of text.split(new RegExp(`(${CONTROL.source})`))) {
      if (!part) continue;
      const span = document.createElement("span");
      span.className = CONTROL.test(part) ? "control" : name;
      span.textContent = CONTROL.test(part) ? `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : part;
      parent.append(span);
    }
  }

  function chip(index) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    button.dataset.index = index;
    const leave = () => {
      if (state.hovered === index) state.hovered = null;
      drawAll();
    };
    const enter = () => {
      state.hovered = index;
      drawAll();
    };
    button.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && enter());
    button.addEventListener("pointerleave", leave);
    button.addEventListener("focus", () => button.matches(":focus-visible") && enter());
    button.addEventListener("blur", leave);
    button.addEventListener("click", () => {
      state.pinned = state.pinned === index ? null : index;
      drawAll();
    });
    return button;
  }

  function buildPrompt() {
    const home = $("prompt");
    const letters = Array.from(data.prompt); // characters as Python counts them: an emoji is one
    const seen = data.cut ?? letters.length;
    const passage = (start, stop) => {
      addText(home, letters.slice(start, Math.min(stop, seen)).join(""), "between");
      if (stop > seen) addText(home, letters.slice(Math.max(start, seen), stop).join(""), "lost");
    };
    let at = 0;
    data.words.forEach((word, index) => {
      passage(at, word.start);
      const button = chip(index);
      addText(button, word.text, "letters");
      home.append(button);
      at = word.stop;
    });
    passage(at, letters.length);
    data.kinds.forEach((_, i) => $("kinds").append(chip(data.words.length + i)));
    if (/[\u3400-\u9fff]/.test(data.prompt)) home.lang = "zh";
  }

  function showShares() {
    const most = Math.max(1e-9, ...subjects.slice(0, data.words.length).map((s) => s.shares[state.slot]));
    for (const button of document.querySelectorAll(".chip")) {
      const share = subjects[button.dataset.index].shares[state.slot];
      button.style.setProperty("--share", Math.min(1, share / most));
      button.title = percent(share);
    }
    const sum = (list) => list.reduce((total, item) => total + item.shares[state.slot], 0);
    const parts = [["words", sum(data.words)], ...data.kinds.map((kind) => [kind.name, kind.shares[state.slot]])];
    const rest = 1 - parts.reduce((total, [, share]) => total + share, 0);
    if (rest > 5e-4) parts.splice(1, 0, ["other", rest]);
    $("shares").replaceChildren();
    $("share-list").replaceChildren();
    for (const [name, share] of parts) {
      const piece = document.createElement("span");
      piece.className = `of-${name}`;
      piece.style.flex = `${share} 0 0`;
      $("shares").append(piece);
      const item = document.createElement("li");
      const key = document.createElement("i");
      key.className = `key of-${name}`;
      item.append(key, `${t(name)} ${percent(share)}`);
      $("share-list").append(item);
    }
    $("shares").setAttribute("aria-label", parts.map(([name, share]) => `${t(name)} ${percent(share)}`).join(", "));
  }

  // ---- inside the model -------------------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  function shape(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }
  function picture(home, wide, high, label) {
    home.replaceChildren();
    return shape(home, "svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
  }
  const colorAt = (place) => {
    const at = Math.round(Math.min(Math.max(place, 0), 1) * 255) * 3;
    return `rgb(${colors[at]},${colors[at + 1]},${colors[at + 2]})`;
  };
  const shortSpan = ([first, end]) => (first === end ? String(first) : `${first}–${end}`);

  function showFrames() {
    const note = $("frames-note");
    if (!data.frames) {
      $("frames").replaceChildren();
      note.textContent = t("noFrames");
      return;
    }
    const mass = data.frames[state.slot];
    const size = 230 / frames;
    const svg = picture($("frames"), 280, 256, t("frames"));
    const words = t("framesNote", layerName(state.slot)) + (mass.flat().includes(null) ? t("hatched") : "")
      + (data.framesError ? t("sampled", data.framesError[state.slot]) : "");
    note.textContent = words;
    const every = Math.ceil(frames / 8);
    mass.forEach((line, q) => {
      const y = q * size;
      if (q % every === 0) {
        shape(svg, "text", { x: 42, y: y + size / 2 + 4, "text-anchor": "end" }, shortSpan(data.spans[q]));
        shape(svg, "text", { x: 50 + (q + 0.5) * size, y: 248, "text-anchor": "middle" }, shortSpan(data.spans[q]));
      }
      line.forEach((value, k) => {
        const x = 50 + k * size;
        const box = shape(svg, "rect", { x, y, width: size, height: size });
        if (value === null) {
          box.setAttribute("class", "hatched");
          for (let i = 1; i < 8; i += 1) {
            const a = (i * size) / 4;
            shape(svg, "line", {
              x1: x + Math.max(0, a - size), y1: y + Math.min(a, size), x2: x + Math.min(a, size), y2: y + Math.max(0, a - size),
              class: "hatch-line",
            });
          }
        } else {
          box.setAttribute("fill", colorAt(value));
          if (frames <= 8) {
            const attributes = { x: x + size / 2, y: y + size / 2 + 4, "text-anchor": "middle", class: "in-cell" };
            shape(svg, "text", attributes, value.toFixed(2)).style.fill = value < 0.6 ? "#fff" : "#000";
          }
        }
        const said = t("pair", t("span", data.spans[q]), t("span", data.spans[k]), value === null ? t("notComputed") : digits(value));
        box.addEventListener("pointerenter", () => (note.textContent = said));
        box.addEventListener("pointerleave", () => (note.textContent = words));
      });
    });
  }

  function showNoise() {
    const count = data.steps.length;
    const svg = picture($("noise"), 280, 256, t("noise"));
    const note = $("noise-note");
    const high = data.steps.filter((step) => step.noise_expert === "high").length;
    const said = () => {
      note.replaceChildren();
      const one = data.steps.every((step) => step.noise_expert === "");
      (one ? [t("oneDenoiser", count)] : t("noise_", high, count - high)).forEach((line, i) => {
        const key = document.createElement("i");
        key.className = i ? "key of-other" : "key of-end_of_text";
        const row = document.createElement("div");
        row.append(key, line);
        note.append(row);
      });
      const unit = document.createElement("div");
      unit.textContent = t("sigma");
      note.append(unit);
    };
    said();
    const wide = 240 / Math.max(count, 1);
    for (const level of [0, 0.5, 1]) {
      const y = 230 - level * 215;
      shape(svg, "line", { x1: 32, x2: 274, y1: y, y2: y, class: "axis" });
      shape(svg, "text", { x: 26, y: y + 4, "text-anchor": "end" }, String(level));
    }
    data.steps.forEach((step, i) => {
      const attributes = { x: 34 + i * wide + wide * 0.08, width: wide * 0.84, y: 230 - step.sigma * 215, height: step.sigma * 215 };
      const bar = shape(svg, "rect", { ...attributes, rx: 2, class: `noise-${step.noise_expert || "high"}` });
      bar.addEventListener("pointerenter", () => (note.textContent = t("step", step.step, digits(step.sigma), step.noise_expert)));
      bar.addEventListener("pointerleave", said);
      if (i % Math.max(1, Math.ceil(count / 6)) === 0) {
        shape(svg, "text", { x: 34 + (i + 0.5) * wide, y: 248, "text-anchor": "middle" }, String(step.step));
      }
    });
  }

  function showLoad() {
    const note = $("load-note");
    if (!data.load) {
      $("load").replaceChildren();
      note.textContent = t(data.routing ? "noExperts" : "noLoad");
      return;
    }
    const top = Math.max(...data.load.flat());
    const svg = picture($("load"), 280, 256, t("load"));
    const high = 230 / data.load.length;
    const wide = 245 / data.load[0].length;
    const words = t("loadNote", percent(top));
    note.textContent = words;
    data.load.forEach((line, layer) => {
      const every = Math.ceil(data.load.length / 12);
      if (layer % every === 0) shape(svg, "text", { x: 24, y: layer * high + high / 2 + 4, "text-anchor": "end" }, String(layer));
      line.forEach((value, expert) => {
        const box = shape(svg, "rect", { x: 30 + expert * wide, y: layer * high, width: wide - 1, height: high - 1, fill: colorAt(value / top) });
        const said = t("loadCell", layer, expert, percent(value));
        box.addEventListener("pointerenter", () => (note.textContent = said));
        box.addEventListener("pointerleave", () => (note.textContent = words));
      });
    });
    data.load[0].forEach((_, expert) => {
      if (expert % Math.ceil(data.load[0].length / 16) === 0) {
        shape(svg, "text", { x: 30 + (expert + 0.5) * wide, y: 248, "text-anchor": "middle" }, String(expert));
      }
    });
  }

  // ---- page -------------------------------------------------------------------------------------
  function options(select, list) {
    const chosen = select.value;
    select.replaceChildren(...list.map(([value, text]) => new Option(text, value, false, String(value) === chosen)));
  }

  function speak(chosen) {
    language = chosen;
    document.documentElement.lang = chosen;
    for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
    for (const name of ["en", "zh"]) $(name).setAttribute("aria-pressed", String(name === chosen));
    for (const name of ["back", "forth", "scrub"]) $(name).setAttribute("aria-label", t(name));
    for (const { button, span } of strip) button.setAttribute("aria-label", t("span", span));
    options($("layer"), [[0, t("mean")], ...data.layers.map((n, i) => [i + 1, t("numbered", n)])]);
    options($("scale"), Object.entries(t("scales")));
    for (const button of document.querySelectorAll("#kinds .chip")) button.textContent = nameOf(Number(button.dataset.index));
    $("cut").hidden = data.cut === null;
    $("cut").textContent = data.cut === null ? "" : t("cut", data.cut);
    $("reading").replaceChildren();
    for (const line of [...(data.video.frames ? [] : [t("notDecoded")]), ...t("reading", data)]) {
      const item = document.createElement("li");
      item.textContent = line;
      $("reading").append(item);
    }
    play(state.playing);
    showEverything();
  }

  function showEverything() {
    showShares();
    showFrames();
    showNoise();
    showLoad();
    drawAll();
  }

  function buildRecord() {
    for (const [name, value] of data.record) {
      const term = document.createElement("dt");
      const said = document.createElement("dd");
      term.textContent = name;
      addText(said, value, "value");
      $("record").append(term, said);
    }
  }

  function buildStrip() {
    const every = Math.ceil(data.spans.length / 9);
    data.spans.forEach((span, i) => {
      if (i % every) return;
      const button = document.createElement("button");
      const target = document.createElement("canvas");
      const label = document.createElement("span");
      const small = Math.min(width, 192);
      Object.assign(target, { width: small, height: Math.round((height * small) / width), className: width < 320 ? "crisp" : "" });
      button.type = "button";
      label.textContent = shortSpan(span);
      button.append(target, label);
      button.addEventListener("click", () => {
        play(false);
        go(Math.min(middle(span), last));
      });
      strip.push({ button, target, span });
      $("strip").append(button);
    });
  }

  function listen() {
    $("en").addEventListener("click", () => speak("en"));
    $("zh").addEventListener("click", () => speak("zh"));
    $("play").addEventListener("click", () => play(!state.playing));
    $("back").addEventListener("click", () => (play(false), go(state.frame - 1)));
    $("forth").addEventListener("click", () => (play(false), go(state.frame + 1)));
    $("scrub").addEventListener("input", (event) => (play(false), go(Number(event.target.value))));
    $("opacity").addEventListener("input", (event) => ((state.opacity = event.target.value / 100), drawAll()));
    $("scale").addEventListener("change", (event) => ((state.scale = event.target.value), drawAll()));
    $("layer").addEventListener("change", (event) => {
      state.slot = Number(event.target.value);
      showEverything();
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest("input, select");
      if (event.key === " " && !event.target.closest("button, select")) play(!state.playing);
      else if (event.key === "ArrowLeft" && !typing) (play(false), go(state.frame - 1));
      else if (event.key === "ArrowRight" && !typing) (play(false), go(state.frame + 1));
      else if (event.key === "Escape") ((state.pinned = state.hovered = null), drawAll());
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      const index = active();
      if (index === null || isMissing(index, state.slot)) return ($("readout").textContent = "");
      const box = canvas.getBoundingClientRect();
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
      const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
      const latent = latentOf(state.frame);
      const mass = mapAt(index, state.slot, latent)[row * columns + column] * data.maps.unit[index][state.slot];
      $("readout").textContent = t("readout", row, column, t("span", data.spans[latent]), digits(mass));
    });
    canvas.addEventListener("pointerleave", () => ($("readout").textContent = ""));
  }

  async function start() {
    $("facts").textContent = data.facts;
    document.title = `${data.prompt.slice(0, 80)} – wanviz`;
    Object.assign(canvas, { width, height, className: width < 320 ? "crisp" : "" });
    Object.assign(heat, { width: heatWidth, height: heatHeight });
    $("scrub").max = last;
    const bar = $("legend").getContext("2d");
    for (let i = 0; i < 256; i += 1) {
      bar.fillStyle = colorAt(i / 255);
      bar.fillRect(i, 0, 1, 1);
    }
    buildPrompt();
    buildRecord();
    buildStrip();
    listen();
    speak((navigator.language || "en").startsWith("zh") ? "zh" : "en");
    if (data.video.frames) {
      const images = data.video.frames.map((frame) => new Blob([bytes(frame)], { type: "image/webp" }));
      pictures = await Promise.all(images.map((image) => createImageBitmap(image)));
    }
    drawAll();
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
