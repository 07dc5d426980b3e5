// What is chosen, and what happens on clicks and keys.

const state = {tab: "forward", detection: 0, stage: 0, gradient: 0, score: data.score, mask: 0.5};
const byId = id => document.getElementById(id);
const stages = STAGES.filter(s => data.hasMasks || !s.masks);
const visible = () => data.detections.map((d, i) => i).filter(i => data.detections[i].score >= state.score);
let scene = null;

// #backward/fpn.p2 or #forward/2/anchor: so that a place in the page can be linked to.
function readHash() {
  const [tab, a, b] = location.hash.slice(1).split("/");
  if (tab === "backward" && data.backward) {
    state.tab = tab;
    state.gradient = Math.max(data.backward.stages.findIndex(s => s.name === a), 0);
  } else if (tab === "forward") {
    state.detection = Math.min(Math.max(Number(a) || 0, 0), Math.max(data.detections.length - 1, 0));
    state.stage = Math.max(stages.findIndex(s => s.id === b), 0);
  }
}

function writeHash() {
  const place = state.tab === "forward" ? `forward/${state.detection}/${stages[state.stage].id}` : `backward/${data.backward.stages[state.gradient].name}`;
  history.replaceState(null, "", "#" + place);
}

function drawScene(figure) {
  if (state.tab === "backward") return drawSampledRois(figure);
  const [w, h] = data.image.shown, toView = [data.input.width / w, data.input.height / h], shown = visible();
  figure.picture(photo, figure.view);
  for (const i of data.hasMasks ? shown : []) {
    const d = data.detections[i], {x, y, data: place} = d.pasted;
    const [rows, columns] = place.shape;
    figure.picture(tinted(d.pasted, d.label, state.mask),
      [x * toView[0], y * toView[1], (x + columns) * toView[0], (y + rows) * toView[1]]);
  }
  for (const i of shown) if (i !== state.detection) figure.box(data.detections[i].box, colourOf(data.detections[i].label),
    1.5);
  if (byId("targets").checked) for (const t of data.targets) figure.box(toInput(t.box), "black", 1.5, true);
  const d = data.detections[state.detection];
  if (d && shown.includes(state.detection)) {
    figure.box(d.box, colourOf(d.label), 4);
    figure.text(`${className(d.label)} ${d.score.toFixed(2)}`, d.box[0], d.box[1], colourOf(d.label),
      [4, 5].includes((d.label - 1) % PALETTE.length) ? "white" : "black");
  }
}
const toInput = box => box.map((v, i) => v * (i % 2 ? data.input.height / data.image.height
  : data.input.width / data.image.width));

// A click chooses the smallest box under it; a second click at the same place the next larger one.
function clickScene(x, y) {
  if (state.tab === "backward") return;
  const area = i => { const b = data.detections[i].box; return (b[2] - b[0]) * (b[3] - b[1]); };
  const under = visible().filter(i => { const b = data.detections[i].box;
    return x >= b[0] && x <= b[2] && y >= b[1] && y <= b[3]; }).sort((i, j) => area(i) - area(j));
  if (under.length) select(under[(under.indexOf(state.detection) + 1) % under.length]);
}

function select(detection) {
  state.detection = detection;
  chosenMap = null;
  show();
}

function showList() {
  const list = byId("list"), forward = state.tab === "forward", shown = visible();
  list.replaceChildren();
  byId("controls").hidden = !forward;
  byId("list-title").textContent = forward ? `Detections (${shown.length} of ${data.detections.length})` : "Losses";
  if (!forward) return lossList(list.appendChild(make("li")));
  for (const i of shown) {
    const d = data.detections[i], swatch = make("span", {className: "swatch"});
    swatch.style.background = colourOf(d.label);
    const button = make("button", {type: "button", "aria-current": String(i === state.detection), onclick: () => select(i)},
                        swatch, `${i}  ${className(d.label)}`, make("span", {className: "score"}, d.score.toFixed(3)));
    list.append(make("li", {}, button));
    if (i === state.detection) button.scrollIntoView({block: "nearest"});
  }
  if (!shown.length) list.append(make("li", {}, "None has so high a score: move the slider to the left."));
}

function showStage() {
  const article = byId("stage"), nav = byId("stages"), forward = state.tab === "forward";
  document.body.className = state.tab;
  article.replaceChildren();
  nav.replaceChildren();
  if (forward) {
    stages.forEach((s, i) => nav.append(make("button", {type: "button", "aria-current": String(i === state.stage),
      onclick: () => { state.stage = i; showStage(); }}, `${i + 1} ${s.name}`)));
    const d = data.detections[state.detection], s = stages[state.stage];
    article.append(make("h2", {}, s.title), make("p", {className: "lead"}, s.lead),
                   make("p", {className: "code"}, "In Python: ", make("code", {}, s.code(state.detection)),
                     `  Explained in notebook ${s.notebook}.`));
    if (!d || !visible().includes(state.detection)) article.append(make("p", {}, "No detection is chosen."));
    else {
      s.draw(article, d);
      byId("announce").textContent = `Detection ${state.detection}, ${className(d.label)}, stage ${s.name}`;
    }
  } else {
    gradientList(article);
    drawGradient(article);
    byId("announce").textContent = `Gradient at ${data.backward.stages[state.gradient].name}`;
  }
  if (data.detections.length || !forward) writeHash();
}

function show() {
  for (const tab of ["forward", "backward"]) byId("tab-" + tab).setAttribute("aria-selected", String(state.tab === tab));
  byId("score-value").textContent = state.score.toFixed(2);
  byId("mask-value").textContent = state.mask.toFixed(2);
  const shown = visible();
  if (!shown.includes(state.detection) && shown.length) state.detection = shown[0];
  scene.paint();
  showList();
  showStage();
}

function step(value, by, count) { return Math.min(Math.max(value + by, 0), count - 1); }

function onKey(event) {
  if (event.target.matches("input[type=range]") || event.ctrlKey || event.altKey || event.metaKey) return;
  const by = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1}[event.key];
  if (!by) return;
  event.preventDefault();
  const along = event.key === "ArrowLeft" || event.key === "ArrowRight";
  if (state.tab === "backward") state.gradient = step(state.gradient, by, data.backward.stages.length);
  else if (along) state.stage = step(state.stage, by, stages.length);
  else {
    const shown = visible();
    if (shown.length) return select(shown[step(shown.indexOf(state.detection), by, shown.length)]);
  }
  showStage();
}

async function start() {
  await unpackArrays();
  photo = make("img", {src: data.image.url});
  await photo.decode();
  readHash();
  byId("about").textContent = data.about;
  byId("notes").append(...data.notes.map(text => make("li", {}, text)));
  byId("mask-label").hidden = !data.hasMasks;
  if (!data.targets.length) byId("targets-label").hidden = true;
  if (!data.backward) Object.assign(byId("tab-backward"), {disabled: true, title: "needs an image with a target"});
  for (const tab of ["forward", "backward"]) byId("tab-" + tab).addEventListener("click", () => { state.tab = tab; show();
    });
  const score = byId("score");
  score.min = Math.floor(100 * data.settings.boxScore) / 100;
  score.value = state.score;
  score.addEventListener("input", () => { state.score = Number(score.value); show(); });
  byId("mask").addEventListener("input", event => { state.mask = Number(event.target.value); show(); });
  byId("targets").addEventListener("change", () => scene.paint());
  document.addEventListener("keydown", onKey);
  scene = new Figure(byId("scene"), {view: view(), width: 330, label: "the image with its detections", draw: drawScene,
    click: clickScene,
    read: (x, y) => `x ${(x * data.image.width / data.input.width).toFixed(0)}, y ${(y * data.image.height / data.input.height).toFixed(0)}`});
  show();
  document.body.dataset.ready = "yes";
}
start();
