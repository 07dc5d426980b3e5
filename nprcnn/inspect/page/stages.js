// The forward half: the stages of one detection, in the order in which they run. Each draws itself into `parent`.

const className = label => data.classes[label];
const view = () => [0, 0, data.input.width, data.input.height];      // boxes are in pixels of the network's input
let photo = null;                                                   // the picture, loaded by page.js
let channel = 0;                                                    // the chosen one of the shown channels
let chosenMap = null;

// The picture under boxes, in the coordinates of the network's input. marks: [[box, colour, width, dashed], ...]
function boxesFigure(parent, marks, {title, width = 340, read} = {}) {
  return new Figure(parent, {
    view: view(), width, title, label: title,
    draw: figure => {
      figure.picture(photo, figure.view, true);
      figure.context.fillStyle = "rgb(255 255 255 / 45%)";
      figure.context.fillRect(...figure.view);
      for (const [box, colour, line, dashed] of marks) figure.box(box, colour, line, dashed, line > 1);
    },
    read: read || ((x, y) => `x ${x.toFixed(1)}, y ${y.toFixed(1)}`),
  });
}

// A table of boxes with their line styles: [[name, box, colour, dashed], ...]
function boxTable(parent, rows) {
  const key = (name, colour, dashed) => {
    const mark = make("span", {className: dashed ? "key dashed" : "key"});
    mark.style.borderColor = colour;
    return make("span", {}, mark, name);
  };
  table(parent, ["box", "x1", "y1", "x2", "y2", "width", "height"], rows.map(([name, box, colour, dashed]) =>
    [key(name, colour, dashed), ...box.map(v => v.toFixed(1)), (box[2] - box[0]).toFixed(1), (box[3] - box[1]).toFixed(1)]));
}

// How four deltas move a box: dx, dy are shares of its width and height, dw, dh logarithms of its growth.
function deltaTable(parent, deltas, weights, from) {
  const [dx, dy, dw, dh] = deltas.map((d, i) => d / weights[i]);
  const w = from[2] - from[0], h = from[3] - from[1], divided = weights.some(v => v !== 1);
  const named = ["dx", "dy", "dw", "dh"].map((name, i) => divided ? `${name} / ${weights[i]}` : name);
  const means = [`${Math.abs(dx * w).toFixed(1)} pixels to the ${dx < 0 ? "left" : "right"}`,
    `${Math.abs(dy * h).toFixed(1)} pixels ${dy < 0 ? "up" : "down"}`,
                 `${Math.exp(dw).toFixed(2)} times as wide`, `${Math.exp(dh).toFixed(2)} times as high`];
  const cells = [["delta", ...named], ["the network's number", ...deltas.map(d => short(d))],
                 ...divided ? [["divided", ...[dx, dy, dw, dh].map(d => short(d))]] : [],
                   ["what it does to the box", ...means]];
  table(parent, cells.map(column => column[0]), named.map((_, i) => cells.map(column => column[i + 1])));
}

function choice(parent, what, names, chosen, choose) {
  const row = make("div", {className: "choice", role: "group", "aria-label": what}, make("span", {}, what));
  names.forEach((name, i) => row.append(make("button", {type: "button", "aria-pressed": String(i === chosen),
    onclick: () => choose(i)}, name)));
  parent.append(row);
}

// Small pictures of channels, to choose one.
function channelThumbs(parent, places, channels, what) {
  const row = make("div", {className: "thumbs", role: "group", "aria-label": "channels"});
  places.forEach((place, i) => {
    const map = unpack(place), image = painted(map, VIRIDIS, map.low, map.high);
    const scale = 60 / Math.max(map.rows, map.columns),
      canvas = make("canvas", {width: 120, height: Math.round(120 * map.rows / map.columns)});
    canvas.style.width = map.columns * scale + "px"; canvas.style.height = map.rows * scale + "px";
    canvas.getContext("2d").imageSmoothingEnabled = false;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    row.append(make("button", {type: "button", "aria-pressed": String(i === channel), "aria-label": `channel ${channels[i]}`,
                               onclick: () => { channel = i; showStage(); }}, canvas, String(channels[i])));
  });
  parent.append(make("div", {}, make("figcaption", {}, what), row));
}

const mapByName = name => data.maps.find(map => map.name === name);
const widthFor = (rows, columns, longest) => rows > columns ? longest * columns / rows : longest;

function drawInput(parent, d) {
  const {image, input} = data, same = image.width === input.width && image.height === input.height;
  const row = make("div", {className: "row"});
  parent.append(row);
  const probe = make("canvas", {width: image.shown[0], height: image.shown[1]}),
    context = probe.getContext("2d", {willReadFrequently: true});
  context.drawImage(photo, 0, 0);
  new Figure(row, {
    view: [0, 0, input.padded[0], input.padded[1]], width: 440, title: "what the network gets", label: "the image, padded",
    draw: figure => {
      figure.context.fillStyle = "#c9ccd1"; figure.context.fillRect(...figure.view);
      figure.picture(photo, view());
      figure.box(d.box, DETECTION, 2);
    },
    read: (x, y) => {
      if (x < 0 || y < 0 || x >= input.width || y >= input.height) return "padding: zeros";
      const px = context.getImageData(Math.floor(x / input.width * image.shown[0]),
        Math.floor(y / input.height * image.shown[1]), 1, 1).data;
      return `x ${x.toFixed(1)}, y ${y.toFixed(1)}: red ${px[0]}, green ${px[1]}, blue ${px[2]}`;
    },
  });
  facts(row, [["image", `${image.width} x ${image.height} pixels`],
    ["resized to", same ? "not resized" : `${input.width} x ${input.height}`],
    ["padded to", `${input.padded[0]} x ${input.padded[1]}`],
    ["anchors", data.settings.anchors], ["boxes before NMS", data.settings.beforeNms],
    ["proposals", data.settings.proposals], ["detections", data.detectionsFound]]);
}

function drawFeatures(parent, d) {
  if (!chosenMap) chosenMap = d.roi.map;
  const names = data.maps.map(map => map.name), map = mapByName(chosenMap) || data.maps[0];
  choice(parent, "stage", names.map(name => levelName(name.replace("backbone.", ""))), data.maps.indexOf(map),
    i => { chosenMap = names[i]; showStage(); });
  channel = Math.min(channel, map.channels.length - 1);
  const row = make("div", {className: "row"}), [channels, rows, columns] = map.shape;
  parent.append(row);
  const cells = map.stride * map.factor;                            // input pixels a shown cell
  mapFigure(row, map.data[channel], {
    width: widthFor(rows, columns, 400), title: `${map.name}, channel ${map.channels[channel]}`,
      label: `feature map ${map.name}`,
    overlay: figure => figure.box(d.box.map(v => v / cells), DETECTION, 1.5),
    say: (r, c) => ` (pixels ${c * cells} to ${(c + 1) * cells}, ${r * cells} to ${(r + 1) * cells})`,
  });
  const side = make("div");
  row.append(side);
  channelThumbs(side, map.data, map.channels, `${map.channels.length} of ${channels} channels, those that vary most`);
  facts(side, [["shape", `${channels} x ${rows} x ${columns}`], ["one cell is", `${map.stride} x ${map.stride} pixels`],
    ["mean, deviation", `${short(map.mean)}, ${short(map.std)}`],
      map.factor > 1 ? ["shown", `mean of ${map.factor} x ${map.factor} cells`] : null]);
}

function drawAnchor(parent, d) {
  const a = d.anchor, row = make("div", {className: "row"}), name = levelName(a.level);
  parent.append(row);
  mapFigure(row, data.objectness[a.key], {
    width: widthFor(a.rows, a.columns, 340), title: `objectness of anchor shape ${a.which} on ${name}`, low: 0, high: 1,
    overlay: figure => figure.box([a.column, a.row, a.column + 1, a.row + 1], ANCHOR, 2.5),
  });
  boxesFigure(row, [[a.box, ANCHOR, 2, true]], {title: "the anchor on the image", width: 340});
  const below = make("div", {className: "row"});
  parent.append(below);
  facts(below, [["anchor", `number ${a.index} of ${data.settings.anchors}`],
    ["level", `${name}: ${a.rows} x ${a.columns} cells of ${data.settings.anchorsPerCell} anchors`],
    ["cell", `row ${a.row}, column ${a.column}`], ["box", boxText(a.box)], ["logit", short(a.logit)],
    ["objectness", `sigmoid(${short(a.logit)}) = ${short(a.objectness)}`],
    ["rank", `${a.rank} of the ${a.ofLevel} anchors of its level; the best ${Math.min(data.settings.preNms, a.ofLevel)} go on`]]);
}

function drawProposal(parent, d) {
  const drawn = d.proposal.dropped > d.proposal.droppedBoxes.length ? ` (${d.proposal.droppedBoxes.length} drawn)` : "";
  const a = d.anchor, p = d.proposal, row = make("div", {className: "row"});
  parent.append(row);
  boxesFigure(row, [[a.box, ANCHOR, 2, true], [p.box, PROPOSAL, 3]], {title: "the anchor, moved by its deltas"});
  boxesFigure(row, [...p.droppedBoxes.map(box => [box, "#555", 0.8]), [p.box, PROPOSAL, 3]],
              {title: `NMS: ${p.dropped} boxes dropped for this one${drawn}`});
  boxTable(parent, [["anchor", a.box, ANCHOR, true], ["proposal", p.box, PROPOSAL]]);
  deltaTable(parent, p.deltas, [1, 1, 1, 1], a.box);
  facts(parent, [["proposal", `number ${p.index} of ${data.settings.proposals}, best objectness first`],
    ["objectness", short(p.score)],
    ["dropped", `boxes of the same level with an IoU above ${data.settings.rpnNms} and no higher objectness`]]);
}

function drawClasses(parent, d) {
  const hidden = unpack(d.hidden);
  mapFigure(parent, d.hidden, {width: Math.min(hidden.columns * 10, 640),
    title: `the box head's last hidden layer, ${d.hiddenSize} numbers (after ReLU)`, low: 0});
  const bars = make("div", {className: "bars"});
  bars.append(...["class", "probability", "", "logit"].map(text => make("span", {className: "head"}, text)));
  for (const c of d.classes) {
    const track = make("div", {className: "track"}), bar = make("div", {className: "bar"}),
      limit = make("div", {className: "limit", title: "the score slider"});
    bar.style.width = 100 * c.score + "%"; limit.style.left = 100 * state.score + "%";
    if (c.label === d.label) bar.style.background = colourOf(c.label);
    track.append(bar, limit);
    const chosen = c.label === d.label ? "chosen" : "";
    bars.append(make("span", {className: chosen}, className(c.label)), track,
      make("span", {className: "number " + chosen}, c.score.toFixed(3)),
      make("span", {className: "number"}, c.logit.toFixed(2)));
  }
  parent.append(bars);
  const rest = data.classes.length - d.classes.length;
  parent.append(make("p", {className: "lead"}, `The line is the score slider. ${rest > 0 ? `${rest} other classes are below these. ` : ""}` +
    `A softmax over all ${data.classes.length} classes, background included: they share one sum of 1. ` +
    `One RoI can give several detections, one for every class above ${data.settings.boxScore}.`));
}

function drawRefined(parent, d) {
  const r = d.refined, row = make("div", {className: "row"});
  parent.append(row);
  boxesFigure(row, [[d.anchor.box, ANCHOR, 1.5, true], [d.proposal.box, PROPOSAL, 2], [d.box, DETECTION, 3]],
    {title: "anchor, proposal, detection"});
  boxesFigure(row, [...r.droppedBoxes.map(box => [box, "#555", 0.8]), [d.box, DETECTION, 3]],
    {title: `NMS: ${r.dropped} boxes of its class dropped for this one`});
  boxTable(parent, [["anchor", d.anchor.box, ANCHOR, true], ["proposal", d.proposal.box, PROPOSAL],
    ["detection", d.box, DETECTION]]);
  deltaTable(parent, r.deltas, data.settings.boxWeights, d.proposal.box);
  facts(parent, [["deltas", `those of the class ${className(d.label)}: the box head gives four for every class`],
    r.clipped ? ["clipped", "yes: a side lies on the border of the image"] : null,
    ["dropped", `boxes of this class above ${data.settings.boxScore} with an IoU above ${data.settings.boxNms} and no higher score`],
    ["in the image", boxText(d.imageBox)], bestTarget(d)]);
}

// The target that fits this detection best, if there are targets.
function bestTarget(d) {
  const index = data.detections.indexOf(d), own = data.targets.filter(t => t.best === index);
  if (!data.targets.length) return null;
  const fits = own.map(t => `${className(t.label)}, IoU ${t.iou.toFixed(2)}`).join("; ");
  return ["target", fits || "none has this as its best detection"];
}

// name: of the button; title, lead: what happens; code: the same in Python (i: the detection's number);
// notebook: where it is explained.
const STAGES = [
  {id: "input", name: "Input", title: "The image, as the network gets it", draw: drawInput,
    code: () => `trace["transform.batch"]`, notebook: "00",
    lead: "Normalised, resized to the size that the model is made for, and padded with zeros so that every level " +
      "of the pyramid has whole cells. The box is the chosen detection."},
  {id: "features", name: "Features", title: "Feature maps", draw: drawFeatures,
    code: () => `trace["${chosenMap || "fpn.p2"}"][0]`, notebook: "03 and 04",
    lead: "The backbone's stages and the levels of the pyramid, from fine and shallow to coarse and deep. They are " +
      "computed once, for all detections."},
  {id: "anchor", name: "Anchor", title: "The anchor that it grew from", draw: drawAnchor,
    code: i => `trace["rpn.anchors"][result.anchor[${i}]]`, notebook: "05 and 06",
    lead: "For every anchor of every cell the RPN says how much it looks like an object, of whatever class. This " +
      "is the anchor behind the detection."},
  {id: "proposal", name: "Proposal", title: "From the anchor to the proposal", draw: drawProposal,
    code: i => `trace["rpn.proposals"][0][result.proposal[${i}]]`, notebook: "05 and 07",
    lead: "Four deltas move the anchor. Then non-maximum suppression keeps the best of the boxes that lie on top " +
      "of each other."},
  {id: "roi", name: "Box crop", title: "RoIAlign: the crop for the box head",
    draw: (parent, d) => drawCrop(parent, d.roi, PROPOSAL),
    code: i => `trace["roi_heads.box_features"][result.proposal[${i}]]`, notebook: "08",
    lead: "The proposal's size chooses a level. Each cell of the crop is the mean of a few points, each read " +
      "between four cells of the map. Point at a cell of the crop to see its points."},
  {id: "classes", name: "Class", title: "Which class?", draw: drawClasses,
    code: i => `trace["roi_heads.class_logits"][result.proposal[${i}]]`, notebook: "09",
    lead: "The box head turns the crop into one logit a class; the softmax makes probabilities of them. That of " +
      "the class is the detection's score."},
  {id: "box", name: "Box", title: "From the proposal to the detection", draw: drawRefined,
    code: i => `trace["detections.boxes"][0][${i}]`, notebook: "09",
    lead: "Four more deltas, those of the class, correct the proposal. A second NMS, within the class, leaves one " +
      "box an object."},
  {id: "mask-roi", name: "Mask crop", title: "RoIAlign: the crop for the mask head",
    draw: (parent, d) => drawCrop(parent, d.maskRoi, DETECTION), code: i => `trace["roi_heads.mask_features"][${i}]`,
    notebook: "08 and 10", masks: true,
    lead: "A second, finer crop, now of the detection's final box: the mask is drawn within it."},
  {id: "mask", name: "Mask", title: "Which pixels?", draw: drawMask,
    code: i => `trace["roi_heads.mask_probabilities"][${i}]`, notebook: "10", masks: true,
    lead: "The mask head answers for every class with a small mask of its own (orange: object, purple: not). The " +
      "class, which is already decided, says which one counts."},
  {id: "paste", name: "Paste", title: "The mask in the image", draw: drawPasted, code: i => `result.masks[${i}]`,
    notebook: "10", masks: true,
    lead: "The small mask is stretched over its box, and cut at a threshold. Move the mask slider."},
];
