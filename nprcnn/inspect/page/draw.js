// What everything is drawn with: the arrays, colours, and figures that say their values where one points.

const data = JSON.parse(document.getElementById("data").textContent);
let bytes = new Uint8Array(0);      // all arrays, one byte a number; see nprcnn/inspect/arrays.py

async function unpackArrays() {
  const packed = Uint8Array.from(atob(document.getElementById("arrays").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  bytes = new Uint8Array(await new Response(stream).arrayBuffer());
}

// A stored array (rows, columns) as an object that answers at(row, column).
function unpack(place) {
  const [rows, columns] = place.shape;
  return {rows, columns, low: place.low, high: place.low + 255 * place.step,
          at: (r, c) => place.low + place.step * bytes[place.at + r * columns + c]};
}

// Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the same as in nprcnn/canvas.py.
const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"];
const ANCHOR = "#D55E00", PROPOSAL = "#CC79A7", DETECTION = "#0072B2";     // as in the notebooks
const colourOf = label => label === 0 ? "#888888" : PALETTE[(label - 1) % PALETTE.length];

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
  "#fde725"];
const DIVERGING = ["#542788", "#998ec3", "#d8daeb", "#f7f7f7", "#fee0b6", "#f1a340", "#b35806"];     // purple no, orange yes
const HEAT = ["#ffffff", "#fee6ce", "#fdae6b", "#f16913", "#a63603", "#541d00"];
  // the size of a gradient

const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));

// The colour at a share 0..1 of a list of colours.
function colourAt(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2);
  const a = rgb(stops[i]), b = rgb(stops[i + 1]), t = place - i;
  return a.map((v, k) => Math.round(v + (b[k] - v) * t));
}

// A map as a small canvas of one pixel a cell.
function painted(map, stops, low, high) {
  const canvas = document.createElement("canvas");
  canvas.width = map.columns; canvas.height = map.rows;
  const table = Array.from({length: 256}, (_, i) => colourAt(stops, i / 255));
  const context = canvas.getContext("2d"), pixels = context.createImageData(map.columns, map.rows);
  const range = high > low ? high - low : 1;
  for (let r = 0, k = 0; r < map.rows; r++) for (let c = 0; c < map.columns; c++, k += 4) {
    const colour = table[Math.min(Math.max(Math.round((map.at(r, c) - low) / range * 255), 0), 255)];
    pixels.data[k] = colour[0]; pixels.data[k + 1] = colour[1]; pixels.data[k + 2] = colour[2]; pixels.data[k + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// make("p", {className: "lead"}, "text", node, ...) -> element
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value); else element[name] = value;
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

// A canvas with coordinates of its own: view [x1, y1, x2, y2], `width` pixels wide on the page.
class Figure {
  // draw(figure) paints; read(x, y) gives the text for a place; click(x, y).
  constructor(parent, {view, width, title, label, draw, read, click, scale}) {
    Object.assign(this, {view, draw, pointed: null});
    const [x1, y1, x2, y2] = view, ratio = window.devicePixelRatio || 1;
    this.unit = width / (x2 - x1);                              // page pixels a unit
    const height = Math.max(Math.round((y2 - y1) * this.unit), 8);
    this.canvas = make("canvas", {width: Math.round(width * ratio), height: Math.round(height * ratio), role: "img",
      "aria-label": label || title});
    this.canvas.style.width = width + "px";
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.context = this.canvas.getContext("2d");
    this.ratio = ratio;
    this.element = make("figure", {className: click ? "clickable" : ""}, title ? make("figcaption", {}, title) : null,
      this.canvas);
    if (scale) this.element.append(scaleBar(scale));
    if (read) this.listen(read);
    if (click) this.canvas.addEventListener("click", event => click(...this.place(event)));
    parent.append(this.element);
    this.paint();
  }

  listen(read) {
    const line = make("p", {className: "readout"});
    this.element.append(line);
    this.canvas.addEventListener("pointermove", event => {
      this.pointed = this.place(event);
      line.textContent = read(...this.pointed) || "";
      this.paint();
    });
    this.canvas.addEventListener("pointerleave", () => { this.pointed = null; line.textContent = ""; this.paint(); });
  }

  place(event) {     // of a mouse event, in the figure's own coordinates
    const frame = this.canvas.getBoundingClientRect(), [x1, y1, x2, y2] = this.view;
    return [x1 + (event.clientX - frame.left) / frame.width * (x2 - x1),
      y1 + (event.clientY - frame.top) / frame.height * (y2 - y1)];
  }

  paint() {
    const [x1, y1] = this.view, scale = this.unit * this.ratio;
    this.context.setTransform(scale, 0, 0, scale, -x1 * scale, -y1 * scale);
    this.context.clearRect(x1, y1, this.view[2] - x1, this.view[3] - y1);
    this.context.imageSmoothingEnabled = false;
    this.draw(this);
  }

  picture(source, [x1, y1, x2, y2], smooth = false) {
    this.context.imageSmoothingEnabled = smooth;
    this.context.drawImage(source, x1, y1, x2 - x1, y2 - y1);
  }

  // A box with a thin white rim, so that it shows on any ground.
  box([x1, y1, x2, y2], colour, width = 2, dashed = false, rim = true) {
    const c = this.context;
    for (const [ink, line] of rim ? [["rgb(255 255 255 / 85%)", width + 2], [colour, width]] : [[colour, width]]) {
      c.strokeStyle = ink; c.lineWidth = line / this.unit;
      c.setLineDash(dashed ? [7 / this.unit, 4 / this.unit] : []);
      c.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
    c.setLineDash([]);
  }

  line(x1, y1, x2, y2, colour, width = 0.7) {
    const c = this.context;
    c.beginPath(); c.moveTo(x1, y1); c.lineTo(x2, y2);
    c.strokeStyle = colour; c.lineWidth = width / this.unit; c.stroke();
  }

  dot(x, y, colour, radius = 2.5) {
    const c = this.context;
    c.beginPath(); c.arc(x, y, radius / this.unit, 0, 7);
    c.fillStyle = colour; c.fill();
    c.strokeStyle = "white"; c.lineWidth = 0.8 / this.unit; c.stroke();
  }

  // A small text on a ground of its own, its lower left corner at (x, y), moved so that it stays inside.
  text(text, x, y, ground, ink = "black") {
    const c = this.context, size = 12 / this.unit, [x1, y1, x2] = this.view;
    c.font = `${size}px system-ui, sans-serif`;
    const width = c.measureText(text).width + 6 / this.unit, height = 16 / this.unit;
    x = Math.max(Math.min(x, x2 - width), x1); y = Math.max(y, y1 + height);
    c.fillStyle = ground; c.fillRect(x, y - height, width, height);
    c.fillStyle = ink; c.textBaseline = "middle"; c.fillText(text, x + 3 / this.unit, y - height / 2);
  }
}

// What the colours mean: {stops, low, high}.
function scaleBar({stops, low, high}) {
  const bar = make("i");
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  return make("div", {className: "scale"}, short(low), bar, short(high));
}

// Numbers as people read them.
function short(value, digits = 3) {
  if (value === null || value === undefined) return "not finite";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}
const boxText = box => box.map(v => v.toFixed(1)).join(", ");
const levelName = name => name === "single" ? "the one map" : name.replace("fpn.", "").replace(/^p(\d)$/, "P$1");

// A map with its values on pointing; overlay(figure, cell) draws over it, cell is null or [row, column]. view: a part of it, in cells.
function mapFigure(parent, place, {width, title, label, stops = VIRIDIS, low, high, overlay, say, click, view}) {
  const map = unpack(place), from = low ?? map.low, to = high ?? map.high, image = painted(map, stops, from, to);
  const cell = (x, y) => x >= 0 && y >= 0 && x < map.columns && y < map.rows ? [Math.floor(y), Math.floor(x)] : null;
  return new Figure(parent, {
    view: view || [0, 0, map.columns, map.rows], width, title, label, click, scale: {stops, low: from, high: to},
    draw: figure => {
      figure.picture(image, [0, 0, map.columns, map.rows]);
      const at = figure.pointed && cell(...figure.pointed);
      if (overlay) overlay(figure, at);
      if (at) figure.box([at[1], at[0], at[1] + 1, at[0] + 1], "black", 1.5);
    },
    read: (x, y) => {
      const at = cell(x, y);
      return at && `row ${at[0]}, column ${at[1]}: ${short(map.at(...at))}${say ? say(...at) : ""}`;
    },
  });
}

function facts(parent, rows) {
  parent.append(make("dl", {className: "facts"}, ...rows.filter(Boolean).flatMap(([name, value]) => [make("dt", {}, name),
    make("dd", {}, value)])));
}

function table(parent, head, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map(cell => make(tag, {}, cell)));
  parent.append(make("div", {className: "wide"}, make("table", {}, make("thead", {}, line("th", head)),
    make("tbody", {}, ...rows.map(cells => line("td", cells))))));
}
