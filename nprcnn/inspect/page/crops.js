// RoIAlign and the masks: what is cut out of the maps, and what is pasted into the image.

// The crop of one RoI, and where on the map it is read. Pointing at a cell of the crop shows its points.
function drawCrop(parent, crop, colour) {
  const map = mapByName(crop.map), shared = crop.channels.every((c, i) => c === map.channels[i]);
  channel = Math.min(channel, crop.crops.length - 1, map.data.length - 1);
  const [rows, columns] = map.data[channel].shape, f = map.factor, bins = crop.size;
  const shift = crop.method === "align" ? 0.5 : 0;                  // a whole number is the centre of a cell
  const frame = [crop.start[0], crop.start[1], crop.start[0] + crop.side[0],
    crop.start[1] + crop.side[1]].map(v => (v + shift) / f);
  const step = [(frame[2] - frame[0]) / bins, (frame[3] - frame[1]) / bins];
  // around the RoI, a square of whole cells
  const half = Math.max(frame[2] - frame[0], frame[3] - frame[1]) / 2 + 1.5,
    middle = [(frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2];
  const near = [Math.floor(middle[0] - half), Math.floor(middle[1] - half), Math.ceil(middle[0] + half),
    Math.ceil(middle[1] + half)];
  let cell = null;
  const points = figure => {
    const many = crop.xs.length / bins, radius = Math.min(Math.max(step[0] * figure.unit / many / 5, 0.7), 2.5);
    crop.ys.forEach((y, j) => crop.xs.forEach((x, i) => {
      const mine = cell && Math.floor(j / many) === cell[0] && Math.floor(i / many) === cell[1];
      figure.dot((x + 0.5) / f, (y + 0.5) / f, mine ? ANCHOR : "#111", mine ? radius + 1.5 : radius);
    }));
  };
  const row = make("div", {className: "row"});
  parent.append(row);
  mapFigure(row, map.data[channel], {
    width: widthFor(rows, columns, 180), title: `${levelName(crop.map)}, channel ${map.channels[channel]}`,
      label: `feature map ${crop.map} with the RoI`,
    overlay: figure => figure.box(frame, colour, 2),
  });
  const onMap = mapFigure(row, map.data[channel], {
    width: 280, title: "where it is read", view: near,
    overlay: figure => {
      figure.box(frame, colour, 2);
      for (let k = 1; k < bins; k++) {
        figure.line(frame[0] + k * step[0], frame[1], frame[0] + k * step[0], frame[3], colour);
        figure.line(frame[0], frame[1] + k * step[1], frame[2], frame[1] + k * step[1], colour);
      }
      if (crop.xs) points(figure);
      if (cell) figure.box([frame[0] + cell[1] * step[0], frame[1] + cell[0] * step[1], frame[0] + (cell[1] + 1) * step[0],
        frame[1] + (cell[0] + 1) * step[1]], ANCHOR, 2);
    },
  });
  const place = crop.crops[channel];
  const figure = mapFigure(row, place, {
    width: 220, title: `${place.shape[0]} x ${place.shape[1]} crop, channel ${crop.channels[channel]}`,
    overlay: (figure, at) => {
      const scale = bins / place.shape[0];                          // after layer4 (C4) the crop has fewer cells
      const now = at && at.map(v => Math.floor(v * scale));
      if (String(now) !== String(cell)) { cell = now; onMap.paint(); }
    },
  });
  figure.canvas.setAttribute("aria-description", "pointing at a cell shows on the map where it is read");
  const below = make("div", {className: "row"}), settings = data.settings;
  parent.append(below);
  channelThumbs(below, crop.crops, crop.channels, shared ? "the same channels of the crop"
    : "channels of the crop, after layer4");
  facts(below, [["RoI", `${boxText(crop.box)} (pixels)`],
    ["sides", `${(crop.box[2] - crop.box[0]).toFixed(1)} x ${(crop.box[3] - crop.box[1]).toFixed(1)}`],
    settings.roiLevels.length > 1 ? ["level",
      `floor(4 + log2(${Math.sqrt(crop.area).toFixed(1)} / ${settings.canonicalSize})) = ${crop.formula}` +
      (crop.formula === crop.level ? "" : `, cut to ${crop.level}`)] : null,
    ["on the map", `${crop.side.map(v => v.toFixed(2)).join(" x ")} cells from (${crop.start.map(v => v.toFixed(2)).join(", ")})`],
    crop.xs ? ["points a cell", `${crop.xs.length / bins} x ${crop.ys.length / bins}, ${crop.xs.length * crop.ys.length} in all`] :
      ["method", "RoIPool: whole cells, the largest value wins"],
    crop.xs ? ["aligned", crop.aligned ? "yes: shifted by half a cell"
      : "no: read half a cell too far right and down"] : null,
    ["shape", crop.shape.join(" x ")], f > 1 ? ["map", `shown in squares of ${f} x ${f} of its cells`] : null]);
}

function drawMask(parent, d) {
  const m = d.mask, row = make("div", {className: "row"});
  parent.append(row);
  const at = unpack(m.data);
  mapFigure(row, m.data, {
    width: 308, title: `probability of ${className(d.label)}, ${at.rows} x ${at.columns}`, stops: DIVERGING, low: 0, high: 1,
    overlay: figure => contour(figure, at, state.mask),
  });
  const side = make("div");
  row.append(side);
  let count = 0;
  for (let r = 0; r < at.rows; r++) for (let c = 0; c < at.columns; c++) count += at.at(r, c) >= state.mask;
  facts(side, [["the line", `probability ${state.mask.toFixed(2)}, the mask slider`],
    ["cells inside", `${count} of ${at.rows * at.columns}`],
    ["logits", `${short(m.lowest)} to ${short(m.highest)}`],
      ["masks of this RoI", m.channels === 1 ? "one, for any class" : `${m.channels}, one a class`]]);
  if (m.others.length) {
    const thumbs = make("div", {className: "row"});
    side.append(make("h3", {}, "what the same RoI answers for other classes"), thumbs);
    for (const other of m.others.slice(0, 6)) {
      const map = unpack(other.data);
      new Figure(thumbs, {view: [0, 0, map.columns, map.rows], width: 92, title: className(other.label),
        draw: f => { f.picture(painted(map, DIVERGING, 0, 1), f.view); contour(f, map, state.mask); }});
    }
  }
}

// The border between cells at or above the limit and the others.
function contour(figure, map, limit) {
  const c = figure.context, inside = (r, k) => r >= 0 && k >= 0 && r < map.rows && k < map.columns && map.at(r, k) >= limit;
  c.beginPath();
  for (let r = 0; r <= map.rows; r++) for (let k = 0; k <= map.columns; k++) {
    if (inside(r, k) !== inside(r - 1, k)) { c.moveTo(k, r); c.lineTo(k + 1, r); }
    if (inside(r, k) !== inside(r, k - 1)) { c.moveTo(k, r); c.lineTo(k, r + 1); }
  }
  c.strokeStyle = "black"; c.lineWidth = 1.5 / figure.unit; c.stroke();
}

// A mask in the picture: tinted where it is at or above the limit.
function tinted(pasted, label, limit) {
  const map = unpack(pasted.data), canvas = make("canvas", {width: map.columns, height: map.rows}),
    context = canvas.getContext("2d");
  const pixels = context.createImageData(map.columns, map.rows), colour = rgb(colourOf(label));
  for (let r = 0, k = 0; r < map.rows; r++) for (let c = 0; c < map.columns; c++, k += 4)
    if (map.at(r, c) >= limit) { pixels.data.set(colour, k); pixels.data[k + 3] = 130; }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function drawPasted(parent, d) {
  const [w, h] = data.image.shown, map = unpack(d.pasted.data), {x, y} = d.pasted,
    place = [x, y, x + map.columns, y + map.rows];
  const value = (r, c) => r >= y && c >= x && r < y + map.rows && c < x + map.columns ? map.at(r - y, c - x) : 0;
  const read = (px, py) => `x ${Math.floor(px)}, y ${Math.floor(py)}: ${short(value(Math.floor(py), Math.floor(px)))}`;
  const box = d.imageBox.map((v, i) => v * (i % 2 ? h / data.image.height : w / data.image.width));
  const row = make("div", {className: "row"});
  parent.append(row);
  new Figure(row, {view: [0, 0, w, h], width: 340, title: "the soft mask, stretched over its box", read, draw: figure => {
    figure.context.fillStyle = "#440154"; figure.context.fillRect(0, 0, w, h);
    figure.picture(painted(map, VIRIDIS, 0, 1), place);
    figure.box(box, DETECTION, 1.5);
  }, scale: {stops: VIRIDIS, low: 0, high: 1}});
  new Figure(row, {view: [0, 0, w, h], width: 340, title: `at least ${state.mask.toFixed(2)}: the mask`, read,
    draw: figure => {
    figure.picture(photo, figure.view);
    figure.picture(tinted(d.pasted, d.label, state.mask), place);
    figure.box(box, DETECTION, 1.5);
  }});
  let count = 0;
  for (let r = 0; r < map.rows; r++) for (let c = 0; c < map.columns; c++) count += map.at(r, c) >= state.mask;
  const small = w !== data.image.width;
  const of = small ? ` of the picture, which is ${(w / data.image.width).toFixed(2)} times as wide as the image` : "";
  facts(parent, [["pixels", `${count}${of}`], ["box", `${boxText(d.imageBox)} (pixels of the image)`],
    ["rule", data.settings.paste === "integer" ?
      "a border of zeros, the box grown as much and rounded to whole pixels, then bilinear (torchvision)" :
      "bilinear at the pixels' centres, no rounding (Detectron2)"], bestTarget(d)]);
}
