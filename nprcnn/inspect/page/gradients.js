// The backward half: the five losses, and the gradient at every stage on its way back from them.

const LOSS_TEXT = {
  loss_objectness: "is this anchor an object?", loss_rpn_box_reg: "where is it exactly, from the anchor?",
    loss_classifier: "which class?",
  loss_box_reg: "where is it exactly, from the proposal?", loss_mask: "which pixels?",
};
const GRADIENT_TEXT = [
  [/^roi_heads.mask_logits/, "The mask loss speaks to the mask of the true class alone, and only at positive RoIs: " +
    "all other channels get 0."],
  [/^roi_heads.mask/, "On its way back through the mask branch. Only positive RoIs have one."],
  [/^roi_heads.class_logits/, "Softmax minus one-hot, divided by the number of RoIs. A gradient points to where " +
    "the loss grows; a step of training goes the other way."],
  [/^roi_heads.box_deltas/, "Only positive RoIs, and of those only the four deltas of the true class, have a box " +
    "to be wrong about."],
  [/^roi_heads.box/, "On its way back through the box head: the gradients of the class scores and of the boxes " +
    "have been added."],
  [/^rpn.(logits|objectness)/, "The RPN's own loss looks at the sampled anchors alone: everywhere else the gradient is 0."],
  [/^rpn.deltas/, "Only positive anchors have a box to be wrong about."],
  [/^fpn.p6/, "P6 serves the RPN alone, so only the RPN's losses arrive here."],
  [/^fpn/, "Here the ways meet: RPN, box head and mask head all read this level, so their gradients add. RoIs send " +
    "theirs to the level that they were cut from."],
  [/^backbone/, "What the pyramid levels want of this stage has been added up."],
];

// The list of all stages with bars, in the order in which the gradient reaches them; a bar's length is the logarithm of the norm.
function gradientList(parent) {
  const stages = data.backward.stages, norms = stages.map(s => s.norm).filter(v => v > 0);
  const low = Math.log10(Math.min(...norms)) - 0.3, high = Math.log10(Math.max(...norms));
  const list = make("div", {className: "norms", role: "group", "aria-label": "norm of the gradient at every stage"});
  stages.forEach((s, i) => {
    const bar = make("span", {className: "bar"});
    bar.style.width = s.norm > 0 ? Math.max(100 * (Math.log10(s.norm) - low) / (high - low), 1) + "%" : "0";
    list.append(make("button", {type: "button", "aria-current": String(i === state.gradient),
      onclick: () => { state.gradient = i; showStage(); }},
                     make("span", {}, s.name), make("span", {}, bar), make("span", {className: "number"}, short(s.norm))));
  });
  parent.append(make("h3", {}, "norm of the gradient, from the losses back to the image (bars: logarithmic)"), list);
  const current = list.children[state.gradient];
  list.scrollTop = current.offsetTop - list.offsetTop - 120;
}

function drawGradient(parent) {
  const s = data.backward.stages[state.gradient];
  parent.append(make("h2", {}, s.name), make("p", {className: "lead"},
    GRADIENT_TEXT.find(([pattern]) => pattern.test(s.name))[1]),
                make("p", {className: "code"}, make("code", {}, `trace.grad["${s.name}"]`), ` ${s.about}`,
                  " (notebook 11)"));
  const row = make("div", {className: "row"});
  parent.append(row);
  if (s.gradient) {
    const [rows, columns] = s.gradient.shape, long = s.kind === "crop" ? 230 : 330;
    const what = {map: "summed over the channels", crop: "summed over the channels, mean of all RoIs",
      matrix: "a row an RoI, those with the largest first"}[s.kind];
    const width = s.kind === "matrix" ? Math.max(columns * Math.min(14, 330 / columns, 260 / rows), 110) : widthFor(rows,
      columns, long);
    mapFigure(row, s.gradient, {width, title: "size of the gradient", stops: HEAT, low: 0});
    mapFigure(row, s.value, {width, title: "size of the values", low: 0});
    row.lastChild.setAttribute("aria-description", what);
    parent.append(make("p", {className: "code"}, `Absolute values, ${what}.`));
  }
  facts(parent, [["norm", short(s.norm)], ["largest number", short(s.largest)],
    ["numbers that are not 0", `${(100 * s.share).toFixed(s.share < 0.1 ? 2 : 0)} %`], ["shape", s.shape.join(" x ")]]);
  if (s.name === "roi_heads.class_logits") drawClassRows(parent);
  if (s.name === "roi_heads.mask_logits") drawMaskRows(parent);
}

// A table with a row an RoI: purple where a logit should grow, orange where it should shrink.
function drawClassRows(parent) {
  const {labels, shown, data: place} = data.backward.classes, map = unpack(place);
  const cell = (r, c) => {
    const value = map.at(r, c), td = make("td", {className: shown[c] === labels[r] ? "true" : ""},
      (Math.round(100 * value) / 100 + 0).toFixed(2));
    const [red, green, blue] = colourAt(DIVERGING, value / 2 + 0.5);
    td.style.background = `rgb(${red} ${green} ${blue})`;
    if (Math.abs(value) > 0.7) td.style.color = "white";
    return td;
  };
  parent.append(make("h3", {}, "softmax minus one-hot, a row an RoI (framed: its true class)"),
    make("div", {className: "wide"}, make("table", {className: "rows"},
      make("thead", {}, make("tr", {}, ...["RoI", ...shown.map(className)].map(text => make("th", {}, text)))),
         make("tbody", {}, ...labels.map((label, r) => make("tr", {}, make("td", {}, className(label)),
           ...shown.map((_, c) => cell(r, c))))))));
  parent.append(make("p", {className: "code"}, "Purple: this logit should grow. Orange: it should shrink. Divided " +
    "by the number of RoIs, this is the gradient."));
}

function drawMaskRows(parent) {
  const row = make("div", {className: "row"});
  parent.append(make("h3", {}, "the mask, what it should be, and the gradient (orange: should shrink, purple: should grow)"), row);
  for (const m of data.backward.masks) {
    const triple = make("div", {className: "row"});
    [["mask", DIVERGING, 0, 1, className(m.label)], ["target", DIVERGING, 0, 1, "target"],
      ["gradient", DIVERGING, -m.largest, m.largest, "gradient"]].forEach(([name, stops, low, high, title]) => {
      const map = unpack(m[name]);
      new Figure(triple, {view: [0, 0, map.columns, map.rows], width: 84, title, label: `${title} of a positive RoI`,
        draw: f => f.picture(painted(map, stops, low, high), f.view)});
    });
    row.append(triple);
  }
}

// The left column while gradients are shown: the RoIs that the losses looked at.
function drawSampledRois(figure) {
  figure.picture(photo, figure.view, true);
  figure.context.fillStyle = "rgb(255 255 255 / 45%)"; figure.context.fillRect(...figure.view);
  for (const roi of data.backward.rois.filter(r => r.label === 0)) figure.box(roi.box, "#777777", 0.7, false, false);
  for (const roi of data.backward.rois.filter(r => r.label > 0)) figure.box(roi.box, colourOf(roi.label), 1.5, false, false);
}

function lossList(parent) {
  const b = data.backward, total = Object.values(b.losses).reduce((a, v) => a + v, 0);
  table(parent, ["loss", ""], [...Object.entries(b.losses).map(([name, value]) => [make("span", {title: LOSS_TEXT[name]},
    name), value.toFixed(4)]), ["their sum", total.toFixed(4)]]);
  facts(parent, [["anchors sampled", `${b.anchorSamples[0]} object, ${b.anchorSamples[1]} background`],
    ["RoIs sampled", `${b.positive} object (coloured), ${b.roiCount - b.positive} background (grey)`],
    b.rois.length < b.roiCount ? ["drawn", `the ${b.rois.length} RoIs with the largest gradients`] : null,
    ["all parameters", `gradient of norm ${short(b.parameters)}`]]);
}
