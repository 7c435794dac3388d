// Sends the drawing to /predict while it is drawn, one request at a time, and shows the latest answer.

const SCALE = 10;           // pixels of the pad per pixel of the model's input
const PEN = 1.8 * SCALE;    // about as thick as the strokes of MNIST
const STEP = SCALE;         // how far an arrow key moves the pen

const PAPER = { light: "#fff", dark: "#000" };

const pad = document.getElementById("pad");
const seen = document.getElementById("seen");
const bars = document.getElementById("bars");
const answer = document.getElementById("answer");
const facts = document.getElementById("facts");
const ink = pad.getContext("2d");
const ground = document.getElementById("ground");

const key = new URLSearchParams(location.hash.slice(1)).get("key");
const headers = key ? { Authorization: `Bearer ${key}` } : {};   // if the server needs an API key: /#key=KEY

let drawn = false, changed = false, sending = false;
let pen = null;             // end of the current stroke, or null
let keyboard = null;        // the keyboard's pen: its position, and whether it is down

const [model] = await (await fetch("v2/repository/index", { method: "POST", headers })).json();
const config = await (await fetch(`v2/models/${encodeURIComponent(model.name)}/config`, { headers })).json();
const [height, width] = config.input[0].dims;
const setting = name => config.parameters[name].string_value;
const sendsWhole = setting("fit") === "mass";    // the server finds the ink; otherwise it takes the pixels as they are
ground.value = setting("invert") === "always" ? "light" : "dark";
pad.width = width * SCALE;
pad.height = height * SCALE;
pad.style.setProperty("--aspect", width / height);
seen.width = width;
seen.height = height;
const rows = new Map(setting("class_names").split(",").map(name => [name, addBar(name)]));
clear();

pad.addEventListener("pointerdown", event => {
  pad.setPointerCapture(event.pointerId);
  pen = null;
  strokeTo(positionOf(event));
});
pad.addEventListener("pointermove", event => {
  if (pen && event.buttons) for (const e of event.getCoalescedEvents?.() ?? [event]) strokeTo(positionOf(e));
});
pad.addEventListener("pointerup", () => { pen = null; });
pad.addEventListener("keydown", event => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Delete" || event.key === "Backspace") clear();
  else if (event.key === " ") movePen(0, 0, !keyboard?.down);
  else if (moves[event.key]) movePen(...moves[event.key], keyboard?.down ?? false);
  else return;
  event.preventDefault();
});
document.getElementById("clear").addEventListener("click", clear);
ground.addEventListener("change", clear);

function positionOf(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
}

function strokeTo(point) {
  ink.strokeStyle = PAPER[ground.value === "dark" ? "light" : "dark"];
  ink.lineWidth = PEN;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(...(pen ?? point));
  ink.lineTo(...point);
  ink.stroke();
  pen = point;
  drawn = changed = true;
  send();
}

function movePen(right, down, isDown) {
  const [x, y] = keyboard?.position ?? [pad.width / 2, pad.height / 2];
  const clamp = (value, limit) => Math.min(Math.max(value, 0), limit);
  keyboard = { position: [clamp(x + right * STEP, pad.width), clamp(y + down * STEP, pad.height)], down: isDown };
  if (isDown) strokeTo(keyboard.position);
  else pen = keyboard.position;
  const place = keyboard.position.map(value => Math.round(value / SCALE)).join(", ");
  pad.setAttribute("aria-label", `Drawing pad, pen ${isDown ? "down" : "up"} at ${place}`);
}

function clear() {
  ink.fillStyle = PAPER[ground.value];
  ink.fillRect(0, 0, pad.width, pad.height);
  drawn = changed = false;
  pen = keyboard = null;
  answer.textContent = "Nothing drawn yet";
  facts.textContent = `${model.name} ${model.version}`;
  seen.getContext("2d").clearRect(0, 0, width, height);
  for (const row of rows.values()) showBar(row, 0, false);
}

function drawing() {
  if (sendsWhole) return pad;
  const small = new OffscreenCanvas(width, height);
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(pad, 0, 0, width, height);
  return small;
}

function toFile(canvas) {
  return canvas.convertToBlob?.() ?? new Promise(resolve => canvas.toBlob(resolve, "image/png"));
}

async function send() {
  if (sending) return;
  sending = true;
  while (changed) {
    changed = false;
    const image = await toFile(drawing());
    const started = performance.now();
    try {
      const response = await fetch("predict?pixels=true", { method: "POST", headers, body: image });
      const reply = await response.json();
      if (drawn) show(response.ok ? reply : { error: reply.error }, performance.now() - started);
    } catch {
      answer.textContent = "The server does not answer";
    }
  }
  sending = false;
}

function show(reply, milliseconds) {
  if (reply.error) { answer.textContent = reply.error; return; }
  const probability = reply.probabilities[reply.class_name];
  answer.textContent = `${reply.class_name}, ${percent(probability)}`;
  for (const [name, value] of Object.entries(reply.probabilities)) {
    showBar(rows.get(name), value, name === reply.class_name);
  }
  const image = new ImageData(width, height);
  reply.pixels.flat().forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  seen.getContext("2d").putImageData(image, 0, 0);
  facts.textContent = `${reply.model_name} ${reply.model_version}, ${milliseconds.toFixed(0)} ms`;
}

function addBar(name) {
  const row = document.createElement("li");
  for (const cell of ["name", "bar", "value"]) {
    row.appendChild(document.createElement("span")).className = cell;
  }
  row.firstChild.textContent = name;
  return bars.appendChild(row);
}

function showBar(row, value, best) {
  row.classList.toggle("best", best);
  row.children[1].style.width = `${100 * value}%`;
  row.children[2].textContent = percent(value);
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}
