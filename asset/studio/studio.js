"use strict";
// The studio's page. It asks the server by number for pictures, jobs and results; nothing is loaded from elsewhere.

const byId = (id) => document.getElementById(id);
let client = sessionStorage.getItem("client") || newClient();

const ACTIONS = {
  sample: ["Sample", "New tissue with the look of the square; nothing of the square itself is kept."],
  vary: ["Vary", "The square, changed by the strength: little at 0.2, much at 0.8."],
  repair: ["Repair", "What you paint is replaced by tissue that fits; the rest stays, pixel for pixel. For pen, folds, or another look in a place."],
  extend: ["Extend", "Tissue is added at the sides of the square."],
  enlarge: ["Enlarge", "The square with 2 or 4 times the pixels a side; averaged, they are the square again."],
  colours: ["Colours", "The square with the colours of another picture; nothing else changes."],
  stain: ["Stain", "The square in the other stain, by the flow that the studio was started with."],
};
const POLL = 250, RETRY = 2000; // milliseconds
const UNDONE = 20; // strokes that can be undone

let model = null, picture = null, map = null, layer = null, square = null, selection = null;
let owner = null; // the picture that the selection is of, which may be another than the one in the viewer
let cancelling = false, marker = null;
let notice = ""; // beside the progress of a job
let places = [], wanted = null, job = null, shown = null, picking = false, answered = true;
const before = new Image();
const paint = { mask: document.createElement("canvas"), control: document.createElement("canvas") };
let entries = []; // of the history, the latest first
const settings = JSON.parse(sessionStorage.getItem("settings") || "{}"); // by the number fields' and sliders' ids
const KEPT = ["seed", "steps", "guidance", "strength", "enlarge", "left", "top", "right", "bottom"];
let corners = [], pointer = null, drawing = false;
let undone = []; // what was painted before each of the last strokes

// ---- who this page is

function newClient() {
  const name = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
  sessionStorage.setItem("client", name);
  return name;
}

// A tab that was duplicated has the other one's name: the first to be there keeps it, and with it the job that runs.
async function nameClient() {
  const channel = new BroadcastChannel("pixcell-studio");
  let taken = false;
  channel.onmessage = ({ data }) => {
    if (data.asks === client) channel.postMessage({ has: client });
    if (data.has === client) taken = true;
  };
  channel.postMessage({ asks: client });
  await new Promise((done) => setTimeout(done, 60));
  if (taken) {
    client = newClient();
    sessionStorage.removeItem("job");
  }
}

// ---- the server

async function ask(path, options = {}) {
  const headers = { "X-Pixcell-Client": client, ...(options.headers || {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    lost();
    throw new Error("The studio's server does not answer.");
  }
  found();
  const content = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(content.error || `The server answered ${answer.status}.`);
  return content;
}

function lost() {
  if (!answered) return;
  answered = false;
  byId("banner").textContent = "The studio's server does not answer: start it again in its terminal. Results are kept, and this page goes on by itself.";
  byId("banner").hidden = false;
  setTimeout(retry, RETRY);
}

async function retry() {
  try {
    begin(await ask("/api/state"));
    if (job) follow();
  } catch (error) {
    if (answered) say(error.message, true); // it answers, but does not let this page in
    else { answered = true; lost(); }
  }
}

function found() {
  answered = true;
  byId("banner").hidden = true;
}

function say(text, failed = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("failed", failed);
}

// ---- beginning

async function load() {
  for (const [name, [title]] of Object.entries(ACTIONS)) {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "action", value: name, checked: name === (sessionStorage.getItem("action") || "sample") });
    text.textContent = title;
    label.append(input, text);
    byId("actions").append(label);
    input.addEventListener("change", () => {
      delete settings.strength; // each has its own usual one
      sessionStorage.setItem("settings", JSON.stringify(settings));
      showAction();
    });
  }
  map = L.map("map", { crs: L.CRS.Simple, minZoom: 0, attributionControl: false, boxZoom: false, doubleClickZoom: false });
  map.setView([0, 0], 0);
  map.on("click", (event) => clicked(event.latlng));
  listen();
  await nameClient();
  try {
    begin(await ask("/api/state"));
    restore();
  } catch (error) {
    say(error.message, true);
  }
}

function begin(state) {
  const list = byId("pictures"), chosen = list.value || sessionStorage.getItem("picture");
  list.replaceChildren();
  for (const each of state.pictures) listPicture(each);
  if (!state.pictures.length) list.append(new Option("none yet: upload an image", ""));
  if (state.pictures.some((each) => each.number === chosen)) list.value = chosen;
  if (list.value) openPicture(list.value);
  showHistory(state.history);
  if (state.refused.length) say(state.refused.join(" "), true);
  opened(state);
}

function opened(state) {
  if (state.error) {
    byId("network").textContent = "The network could not be opened.";
    say(state.error, true);
  } else if (!state.model) {
    model = null;
    byId("run").disabled = true;
    byId("network").textContent = "Opening the network …";
    setTimeout(() => ask("/api/model").then(opened, () => {}), POLL);
  } else if (JSON.stringify(state.model) !== JSON.stringify(model)) {
    model = state.model;
    describe();
  }
}

function describe() {
  byId("network").textContent = `${model.name}, ${model.size} pixels, on ${model.device}`;
  const sides = [model.size / 2, model.size, 2 * model.size, 4 * model.size].filter((side) => side >= 128 && side <= 2048);
  byId("side").replaceChildren(...sides.map((side) => new Option(`${side} × ${side} pixels`, side)));
  byId("side").value = sessionStorage.getItem("side") || model.size;
  if (byId("side").selectedIndex < 0) byId("side").value = model.size; // set for another network
  if (model.known_steps && !model.known_steps.includes(Number(settings.steps))) delete settings.steps;
  for (const id of ["steps", "guidance"]) if (!(id in settings)) byId(id).value = model[id];
  byId("known-steps").replaceChildren(...(model.known_steps || []).map((steps) => new Option(steps)));
  byId("guidance").disabled = Boolean(model.known_steps);
  byId("guidance").title = model.known_steps ? "A student has its guidance in every prediction." : "";
  byId("loras").hidden = !model.loras.length;
  byId("loras").replaceChildren(byId("loras").firstElementChild, ...model.loras.map(({ name, scale }) => {
    const label = document.createElement("label"), input = document.createElement("input"), value = document.createElement("output");
    Object.assign(input, { type: "range", min: Math.min(0, scale), max: Math.max(1.5, scale), step: "any", className: "lora" });
    input.value = value.textContent = scale; // as it was given, to the last digit
    input.addEventListener("input", () => { input.value = value.textContent = Math.round(20 * input.value) / 20; });
    label.append(`${name} `, value, input);
    return label;
  }));
  const control = [...byId("structure").options].find((each) => each.value === "control");
  control.disabled = !(model.control && model.control.own);
  byId("structure").value = control.disabled ? "sdedit" : "control";
  for (const each of byId("structure").options) each.disabled = each.value === "control" ? control.disabled : !control.disabled;
  document.querySelector("input[value=stain]").parentElement.hidden = (!model.flow && !model.loras.length) || Boolean(model.control && !model.control.own);
  if (document.querySelector("input[name=action]:checked").parentElement.hidden) document.querySelector("input[value=sample]").checked = true;
  byId("control-scale-label").hidden = !model.control;
  byId("layer-label").hidden = !paintsControl();
  showLooks();
  showAction();
  for (const [id, value] of Object.entries(settings)) byId(id).value = value;
  byId("strength-value").textContent = byId("strength").value;
  byId("run").disabled = !selection || Boolean(job);
}

// What the user has set stays, when the network is opened and when the page is loaded anew.
function keep(id) {
  settings[id] = byId(id).value;
  sessionStorage.setItem("settings", JSON.stringify(settings));
}

function paintsControl() {
  return Boolean(model && model.control && model.control.painted);
}

function restore() {
  const stored = JSON.parse(sessionStorage.getItem("job") || "null");
  if (stored) {
    job = stored;
    follow();
  }
}

// ---- the picture

async function openPicture(number) {
  if (wanted === number) return;
  wanted = number;
  sessionStorage.setItem("picture", number);
  let found;
  try {
    found = await ask(`/api/pictures/${number}`);
  } catch (error) {
    if (wanted === number) { wanted = null; say(error.message, true); }
    return;
  }
  if (wanted !== number) return; // another one was chosen meanwhile
  picture = found;
  const [width, height] = picture.levels[0], top = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / 256)));
  picture.top = top;
  if (layer) layer.remove();
  if (square) square.remove();
  if (marker) marker.remove();
  square = null;
  const corner = (x, y) => map.unproject([x, y], top);
  const bounds = L.latLngBounds(corner(0, height), corner(width, 0));
  const Tiles = L.TileLayer.extend({ getTileUrl: (at) => `/api/pictures/${number}/tiles/${top - at.z}/${at.x}/${at.y}.jpg` });
  layer = new Tiles("", { tileSize: 256, minZoom: 0, maxNativeZoom: top, maxZoom: top + 3, bounds, noWrap: true });
  layer.addTo(map);
  map.setMaxZoom(top + 3);
  map.setMaxBounds(null);
  map.invalidateSize({ animate: false });
  map.fitBounds(bounds, { animate: false }); // a click meanwhile would be of another place
  map.setMaxBounds(bounds.pad(1));
  const note = picture.note === "native" ? "taken pixel for pixel" : picture.note;
  const option = [...byId("pictures").options].find((each) => each.value === number);
  byId("download-picture").hidden = !(option && option.dataset.download);
  byId("download-picture").href = `/api/pictures/${number}/download`;
  byId("picture-note").textContent = `${width} × ${height} pixels, ${note}.`;
  if (owner && owner.number === number) {
    owner = picture;
    frame();
  }
  const stored = JSON.parse(sessionStorage.getItem("selection") || "null");
  if (!selection && stored && stored.picture === number) select(stored.part);
}

function frame() {
  const [x, y, width, height] = selection, corner = (a, b) => map.unproject([a, b], owner.top);
  const bounds = L.latLngBounds(corner(x, y + height * owner.factor), corner(x + width * owner.factor, y));
  if (square) square.remove();
  square = L.rectangle(bounds, { color: "#12c35b", weight: 3, fill: false, interactive: false }).addTo(map);
}

function clicked(place) {
  if (!picture) return;
  const point = map.project(place, picture.top), x = Math.round(point.x), y = Math.round(point.y);
  const [width, height] = picture.levels[0];
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  if (picking) {
    places.push({ kind: "place", name: picture.number, x, y, title: `${picture.name} at ${x}, ${y}` });
    pick(false);
    showLooks(places.length - 1);
    if (marker) marker.remove();
    marker = L.circleMarker(map.unproject([x, y], picture.top), { radius: 9, color: "#ffb000", weight: 3, interactive: false }).addTo(map);
    say("This place is chosen. The square on the workbench stays as it is.");
    return;
  }
  if (job) {
    notice = "Its square stays until then: wait for it, or cancel it.";
    return;
  }
  selectAround(x, y);
  if (byId("at-once").checked) run();
}

function selectAround(x, y) {
  const side = Number(byId("side").value || 256), factor = picture.factor;
  const cut = (at, length) => [Math.max(0, Math.min(Math.round(at / factor - side / 2), length - side)), Math.min(side, length)];
  const [left, wide] = cut(x, picture.width), [upper, high] = cut(y, picture.height);
  select([Math.round(left * factor), Math.round(upper * factor), wide, high]);
}

function select(part) {
  selection = part;
  owner = picture;
  if (!job) say("");
  sessionStorage.setItem("selection", JSON.stringify({ picture: picture.number, part }));
  const [x, y, width, height] = part;
  frame();
  byId("of").textContent = `A square of ${picture.name} at ${x}, ${y}, ${width} × ${height} pixels.`;
  for (const canvas of Object.values(paint)) Object.assign(canvas, { width, height });
  corners = [];
  undone = [];
  byId("undo").disabled = true;
  pointer = [width / 2, height / 2];
  before.onload = () => { showSquare(); };
  before.onerror = () => say("The square cannot be read.", true);
  before.src = `/api/pictures/${picture.number}/part?x=${x}&y=${y}&width=${width}&height=${height}`;
  byId("run").disabled = !model || Boolean(job);
}

// ---- the square

function showSquare() {
  byId("empty").hidden = true;
  for (const id of ["compare", "views", "done", "preview", "again"]) byId(id).hidden = true;
  byId("canvas").hidden = false;
  shown = null;
  draw();
}

function draw() {
  if (!selection || byId("canvas").hidden) return;
  const canvas = byId("canvas"), pen = canvas.getContext("2d");
  Object.assign(canvas, { width: selection[2], height: selection[3] });
  pen.drawImage(before, 0, 0, selection[2], selection[3]);
  pen.globalAlpha = 0.55;
  if (action() === "repair") pen.drawImage(paint.mask, 0, 0);
  if (paintsControl()) pen.drawImage(paint.control, 0, 0);
  pen.globalAlpha = 1;
  if (!painting()) return;
  pen.lineWidth = Math.max(1, selection[2] / 256);
  pen.strokeStyle = "#ffffff";
  if (corners.length) {
    pen.beginPath();
    corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.lineTo(...pointer);
    pen.stroke();
  }
  if (document.activeElement === canvas) {
    pen.beginPath();
    pen.arc(pointer[0], pointer[1], byId("tool").value === "polygon" ? 3 : byId("brush").value / 2, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function painting() {
  return !byId("paint").hidden;
}

function stroke(from, to) {
  const canvas = paint[byId("layer").value], pen = canvas.getContext("2d", { willReadFrequently: true }), erases = byId("tool").value === "eraser";
  pen.globalCompositeOperation = erases ? "destination-out" : "source-over";
  pen.strokeStyle = pen.fillStyle = byId("layer").value === "mask" ? "#12c35b" : "#ffb000";
  pen.lineWidth = Number(byId("brush").value);
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
  pen.beginPath(); // a stroke without length is a point, which browsers do not draw
  pen.arc(to[0], to[1], pen.lineWidth / 2, 0, 2 * Math.PI);
  pen.fill();
  pen.globalCompositeOperation = "source-over";
}

// To be called before what is painted changes.
function remember() {
  if (!job) say("");
  const canvas = paint[byId("layer").value], copy = document.createElement("canvas");
  Object.assign(copy, { width: canvas.width, height: canvas.height });
  copy.getContext("2d").drawImage(canvas, 0, 0);
  undone.push({ canvas, copy });
  if (undone.length > UNDONE) undone.shift();
  byId("undo").disabled = false;
}

function undo() {
  if (corners.length) {
    corners.pop();
  } else if (undone.length) {
    const { canvas, copy } = undone.pop(), pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(copy, 0, 0);
  }
  byId("undo").disabled = !undone.length && !corners.length;
  draw();
}

function corner(point) {
  if (corners.length > 2 && Math.hypot(point[0] - corners[0][0], point[1] - corners[0][1]) < selection[2] / 32) {
    closePolygon();
  } else {
    corners.push(point);
    byId("undo").disabled = false;
  }
  draw();
}

function closePolygon() {
  if (corners.length > 2) {
    remember();
    const pen = paint[byId("layer").value].getContext("2d", { willReadFrequently: true });
    pen.fillStyle = byId("layer").value === "mask" ? "#12c35b" : "#ffb000";
    pen.beginPath();
    corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.fill();
  }
  corners = [];
}

function placeOf(event) {
  const canvas = byId("canvas"), box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
}

function painted(name) {
  const canvas = paint[name], pixels = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height).data;
  const copy = document.createElement("canvas");
  Object.assign(copy, { width: canvas.width, height: canvas.height });
  const pen = copy.getContext("2d"), flat = pen.createImageData(canvas.width, canvas.height);
  let any = false;
  for (let i = 0; i < pixels.length; i += 4) {
    const value = pixels[i + 3] > 127 ? 255 : 0;
    any = any || value > 0;
    flat.data[i] = flat.data[i + 1] = flat.data[i + 2] = value;
    flat.data[i + 3] = 255;
  }
  pen.putImageData(flat, 0, 0);
  return any ? copy.toDataURL("image/png").split(",")[1] : null;
}

// ---- settings

function action() {
  return document.querySelector("input[name=action]:checked").value;
}

function showAction() {
  const name = action();
  sessionStorage.setItem("action", name);
  byId("action-help").textContent = ACTIONS[name][1];
  for (const each of document.querySelectorAll("[data-for]")) {
    each.hidden = !each.dataset.for.split(" ").includes(name) || (each.id === "control-scale-label" && !(model && model.control));
  }
  const controls = paintsControl() && name !== "colours" && name !== "stain";
  byId("paint").hidden = !(name === "repair" || controls);
  if (name !== "repair" && controls) byId("layer").value = "control";
  if (name === "repair") byId("layer").value = "mask";
  const usual = { vary: model && model.strengths.vary, repair: 1, enlarge: model && model.strengths.enlarge, stain: model && model.strengths.stain };
  byId("strength").min = name === "stain" ? 0.05 : 0;
  if (usual[name] !== undefined) byId("strength").value = usual[name];
  byId("strength-value").textContent = byId("strength").value;
  if (!job) say("");
  byId("pick").hidden = !["sample", "vary", "repair", "extend", "colours"].includes(name);
  pick(false);
  if (shown && selection && painting()) showSquare(); // what is to be painted on
  else if (!shown) draw();
}

// The value of a look's option, of which a request is made.
function keyOf({ kind, name, x, y }) {
  return JSON.stringify(kind === "stored" ? { kind, name } : { kind, name, x: x || 0, y: y || 0 });
}

function showLooks(chosen = null) {
  const fill = (list, stored) => {
    const kept = list.value;
    list.replaceChildren(new Option(stored ? "its own" : "as they are", ""));
    if (stored && model) list.append(...model.looks.map((name) => new Option(name.replaceAll("_", " "), keyOf({ kind: "stored", name }))));
    list.append(...places.map((each) => new Option(each.title, keyOf(each))));
    list.value = kept;
    if (list.selectedIndex < 0) list.value = "";
    if (chosen !== null && stored === (action() !== "colours")) list.selectedIndex = list.options.length - places.length + chosen;
  };
  fill(byId("look"), true);
  fill(byId("colours"), false);
}

// Choose what an older request had as its look or colours; null: the picture's own.
function chooseLook(list, wanted) {
  const key = wanted ? keyOf(wanted) : "";
  if (wanted && wanted.kind !== "stored" && !places.some((each) => keyOf(each) === key)) {
    const shown = [...byId("pictures").options].find((each) => each.value === wanted.name), where = `${wanted.x}, ${wanted.y}`;
    places.push({ ...wanted, title: wanted.kind === "result" ? `result ${wanted.name}` : `${shown ? shown.text : "a picture"} at ${where}` });
    showLooks();
  }
  list.value = key;
  if (list.selectedIndex < 0) list.value = "";
}

function pick(on) {
  picking = on;
  byId("pick").setAttribute("aria-pressed", String(on));
  byId("pick").textContent = on ? "Click on the picture …" : action() === "colours" ? "Pick colours on a picture" : "Pick a look on a picture";
  if (on) say("Click a place of this picture, or of another one; Escape ends it.");
}

function numberOf(id) {
  const field = byId(id);
  return field && field.value !== "" ? Number(field.value) : null;
}

function request() {
  const name = action(), look = byId("look").value, colours = byId("colours").value;
  const wanted = { action: name, picture: owner.number, part: selection, seed: numberOf("seed") || 0 };
  const applies = (id) => { const each = byId(id).closest("[data-for]"); return each && !each.hidden; };
  if (name !== "colours") {
    wanted.steps = numberOf("steps");
    wanted.guidance = byId("guidance").disabled ? null : numberOf("guidance");
    wanted.loras = [...document.querySelectorAll("input.lora")].map((each) => Number(each.value));
  }
  if (applies("strength")) wanted.strength = Number(byId("strength").value);
  if (applies("look") && look) wanted.look = { ...JSON.parse(look), amount: Number(byId("look-amount").value) };
  if (applies("colours") && colours) Object.assign(wanted, { colours: JSON.parse(colours), colour_method: byId("colour-method").value });
  if (name === "repair") wanted.mask = painted("mask");
  if (name === "extend") wanted.extend = ["left", "top", "right", "bottom"].map((id) => numberOf(id) || 0);
  if (name === "enlarge") wanted.enlarge = Number(byId("enlarge").value);
  if (name === "stain") wanted.structure = byId("structure").value;
  if (model.control && name !== "colours") {
    wanted.control_scale = Number(byId("control-scale").value);
    if (paintsControl() && name !== "stain") wanted.control = painted("control");
    if (!model.control.own && !wanted.control) wanted.control_scale = 0;
  }
  return wanted;
}

// ---- jobs

async function run() {
  if (!selection || !model || job) return;
  closePolygon();
  draw();
  if (action() === "repair" && !painted("mask")) {
    say("Nothing is painted: paint what is to be replaced, with the brush or the polygon.", true);
    return;
  }
  if (action() === "colours" && !byId("colours").value) {
    say("Whose colours? Press 'Pick colours on a picture' and click, or open a result and press 'Use as look'.", true);
    return;
  }
  const wrong = [...document.querySelectorAll("#settings input[type=number]")].find((each) => each.offsetParent && !each.disabled && !each.validity.valid);
  if (wrong) {
    const name = wrong.closest("label").firstChild.textContent.trim(), to = wrong.max ? `${wrong.min} to ${wrong.max}` : `${wrong.min} or more`;
    say(`${name} is ${wrong.value || "no number"}: expected ${to}${wrong.step === "any" ? "" : ", whole"}.`, true);
    return;
  }
  byId("run").disabled = true;
  job = {}; // until the server has given it a number
  cancelling = false;
  byId("done").hidden = true;
  say("Sent.");
  try {
    const { number } = await ask("/api/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request()) });
    job = { number, previews: 0 };
    sessionStorage.setItem("job", JSON.stringify(job));
    byId("cancel").disabled = false;
    follow();
  } catch (error) {
    end();
    say(error.message, true);
  }
}

async function follow() {
  if (!job || !job.number) return;
  byId("run").disabled = true;
  byId("cancel").disabled = false;
  let state;
  try {
    state = await ask(`/api/jobs/${job.number}`);
  } catch (error) {
    if (!answered) return; // it goes on when the server is back
    end();
    say(`${error.message.replace(/[.]?$/, ".")} Run it again.`, true);
    return;
  }
  const progress = byId("progress");
  progress.value = state.steps ? state.step / state.steps : 0;
  if (state.state === "queued") {
    say(`${state.place ? `Waiting: ${state.place} before this one.` : "Waiting."} ${notice}`);
  } else if (cancelling && state.state === "running") {
    say("Cancelling …");
  } else if (state.state === "running") {
    say(`${state.steps ? `Step ${state.step} of ${state.steps}, ${state.seconds} s.` : "Preparing."} ${notice}`);
    if (state.previews > job.previews) {
      job.previews = state.previews;
      const preview = byId("preview");
      preview.onload = () => { if (job) preview.hidden = false; };
      preview.src = `/api/jobs/${job.number}/preview?client=${encodeURIComponent(client)}&n=${state.previews}`;
    }
  } else {
    end();
    if (state.state === "done") {
      say(`Done in ${state.seconds} s.`);
      addHistory(state.result);
      show(state.result);
    } else {
      say(state.state === "cancelled" ? "Cancelled." : state.error, state.state === "failed");
    }
    return;
  }
  setTimeout(follow, POLL);
}

function end() {
  job = null;
  notice = "";
  sessionStorage.removeItem("job");
  byId("run").disabled = !selection || !model;
  byId("cancel").disabled = true;
  byId("preview").hidden = true;
  byId("progress").value = 0;
  if (document.activeElement === document.body) byId("run").focus({ preventScroll: true }); // where a keyboard was
}

// ---- results

function show(entry) {
  shown = entry;
  const folder = `/history/${entry.number}`, others = entries.filter((each) => each !== entry);
  byId("against").replaceChildren(new Option("what was there", ""), ...others.map((each) => new Option(titleOf(each), each.number)));
  byId("before").src = `${folder}/before.png`;
  byId("figure-before").lastElementChild.textContent = "Before";
  byId("after").src = `${folder}/picture.png`;
  byId("before").alt = `Before: ${entry.picture}`;
  byId("after").alt = `Result of ${ACTIONS[entry.action][0]}, seed ${entry.seed}`;
  byId("empty").hidden = byId("canvas").hidden = byId("preview").hidden = true;
  for (const id of ["compare", "views", "done"]) byId(id).hidden = false;
  byId("again").hidden = !selection;
  byId("download").href = `${folder}/picture.png?download`;
  const [, , width, height] = entry.part, known = [...byId("pictures").options].some((each) => each.value === entry.source);
  byId("as-look").hidden = Math.min(entry.width, entry.height) < 256; // of which a look is taken
  byId("put-back").hidden = !known || width !== entry.width || height !== entry.height;
  byId("command").value = entry.command;
  showView();
}

function showView() {
  byId("compare").dataset.view = byId("view").value;
  byId("cut").hidden = byId("view").value !== "slider";
  byId("compare").style.setProperty("--cut", `${byId("cut").value}%`);
}

function clearBench() {
  if (selection) {
    showSquare();
    return;
  }
  for (const id of ["compare", "views", "done", "again"]) byId(id).hidden = true;
  byId("empty").hidden = false;
  shown = null;
}

function useSettings(entry) {
  const asked = entry.request || {};
  document.querySelector(`input[name=action][value=${entry.action}]`).checked = true;
  showAction();
  for (const [field, id] of [["seed", "seed"], ["steps", "steps"], ["guidance", "guidance"], ["strength", "strength"], ["enlarge", "enlarge"],
    ["structure", "structure"], ["colour_method", "colour-method"], ["control_scale", "control-scale"]]) {
    if (asked[field] !== undefined && asked[field] !== null) byId(id).value = asked[field];
  }
  (asked.extend || []).forEach((pixels, side) => { byId(["left", "top", "right", "bottom"][side]).value = pixels; });
  (asked.loras || []).forEach((scale, number) => {
    const input = document.querySelectorAll("input.lora")[number];
    if (input) input.value = input.previousElementSibling.textContent = scale;
  });
  byId("strength-value").textContent = byId("strength").value;
  for (const [field, id] of [["look", "look"], ["colours", "colours"]]) chooseLook(byId(id), asked[field]);
  if (asked.look) byId("look-amount").value = byId("look-amount-value").textContent = asked.look.amount;
  for (const id of KEPT) keep(id);
  say(`Its settings are taken${entry.action === "repair" || paintsControl() ? "; what was painted is to be painted again" : ""}.`);
}

function titleOf(entry) {
  const time = entry.number.slice(8, 14).replace(/(..)(..)(..)/, "$1:$2:$3");
  const asked = entry.request || {}, strength = asked.strength === undefined || asked.strength === null ? "" : ` ${asked.strength}`;
  return `${ACTIONS[entry.action] ? ACTIONS[entry.action][0] : entry.action}${strength}, ${entry.picture}, seed ${entry.seed}, ${time}`;
}

function showHistory(found) {
  byId("history").replaceChildren();
  entries = [];
  for (const entry of [...found].reverse()) addHistory(entry);
  byId("no-history").hidden = found.length > 0;
}

function addHistory(entry) {
  if (document.getElementById(`entry-${entry.number}`)) return;
  entries.unshift(entry);
  const item = document.createElement("li"), open = document.createElement("button"), image = document.createElement("img");
  const text = document.createElement("span"), remove = document.createElement("button");
  item.id = `entry-${entry.number}`;
  Object.assign(open, { type: "button", className: "entry" });
  Object.assign(image, { src: `/history/${entry.number}/thumbnail.jpg`, alt: "", loading: "lazy" });
  text.textContent = titleOf(entry);
  open.append(image, text);
  open.setAttribute("aria-label", `Show ${text.textContent}`);
  open.addEventListener("click", () => show(entry));
  Object.assign(remove, { type: "button", className: "remove", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${text.textContent}`);
  remove.addEventListener("click", async () => {
    if (!window.confirm(`Remove ${titleOf(entry)} for ever?`)) return;
    try {
      await ask(`/api/history/${entry.number}`, { method: "DELETE" });
      item.remove();
      entries = entries.filter((each) => each !== entry);
      if (shown === entry) clearBench();
      say("It is removed.");
    } catch (error) {
      say(error.message, true);
    }
  });
  item.append(open, remove);
  byId("history").prepend(item);
  byId("no-history").hidden = true;
}

async function uploadBlob(blob, name) {
  const kept = await ask("/api/uploads", { method: "POST", headers: { "X-Name": encodeURIComponent(name) }, body: blob });
  await addPicture(kept);
}

function listPicture({ number, name, download }) {
  const option = new Option(name, number);
  option.dataset.download = download ? "yes" : "";
  byId("pictures").append(option);
}

async function addPicture(kept) {
  const list = byId("pictures");
  if (![...list.options].some((each) => each.value === kept.number)) {
    if (list.options.length === 1 && !list.options[0].value) list.replaceChildren();
    listPicture(kept);
  }
  list.value = kept.number;
  await openPicture(kept.number);
}

// ---- events

function listen() {
  byId("pictures").addEventListener("change", (event) => event.target.value && openPicture(event.target.value));
  byId("upload").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    say(`Uploading ${file.name} …`);
    try {
      await uploadBlob(file, file.name);
      say(`${file.name} is open.`);
    } catch (error) {
      say(error.message, true);
    }
  });
  byId("side").addEventListener("change", (event) => {
    sessionStorage.setItem("side", event.target.value);
    if (!selection || !owner || owner.number !== picture.number || job) return;
    const [x, y, width, height] = selection;
    selectAround(Math.round(x + (width * picture.factor) / 2), Math.round(y + (height * picture.factor) / 2));
  });
  for (const id of KEPT) byId(id).addEventListener("input", () => keep(id));
  byId("settings").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  byId("cancel").addEventListener("click", () => {
    if (!job || !job.number) return;
    cancelling = true;
    say("Cancelling …");
    ask(`/api/jobs/${job.number}`, { method: "DELETE" }).catch((error) => say(error.message, true));
  });
  byId("whole").addEventListener("click", () => layer && map.fitBounds(layer.options.bounds));
  byId("look-amount").addEventListener("input", () => { byId("look-amount-value").textContent = byId("look-amount").value; });
  const compare = byId("compare"), slide = (event) => {
    if (byId("view").value !== "slider" || (event.type === "pointermove" && !event.buttons)) return;
    const box = compare.getBoundingClientRect();
    byId("cut").value = Math.round((100 * (event.clientX - box.left)) / box.width);
    showView();
  };
  for (const name of ["pointerdown", "pointermove"]) compare.addEventListener(name, slide);
  byId("settings-again").addEventListener("click", () => useSettings(shown));
  byId("dice").addEventListener("click", () => { byId("seed").value = Math.floor(Math.random() * 1e9); keep("seed"); });
  byId("strength").addEventListener("input", () => { byId("strength-value").textContent = byId("strength").value; });
  byId("pick").addEventListener("click", () => pick(!picking));
  byId("view").addEventListener("change", showView);
  byId("against").addEventListener("change", ({ target }) => {
    byId("before").src = target.value ? `/history/${target.value}/picture.png` : `/history/${shown.number}/before.png`;
    byId("figure-before").lastElementChild.textContent = target.value ? target.selectedOptions[0].textContent : "Before";
  });
  byId("cut").addEventListener("input", showView);
  byId("again").addEventListener("click", () => selection && showSquare());
  byId("clear").addEventListener("click", () => {
    const canvas = paint[byId("layer").value];
    remember();
    canvas.getContext("2d", { willReadFrequently: true }).clearRect(0, 0, canvas.width, canvas.height);
    corners = [];
    draw();
  });
  byId("undo").addEventListener("click", undo);
  byId("tool").addEventListener("change", () => {
    closePolygon();
    byId("polygon-help").hidden = byId("tool").value !== "polygon";
    draw();
  });
  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("command").value);
      say("The command is copied.");
    } catch (error) {
      byId("command").focus();
      byId("command").select();
      say("The command is marked: copy it by hand.");
    }
  });
  byId("as-look").addEventListener("click", () => {
    places.push({ kind: "result", name: shown.number, title: `result, seed ${shown.seed}` });
    showLooks(places.length - 1);
    say(action() === "colours" ? "Its colours are taken." : "This result is the look now.");
  });
  byId("as-picture").addEventListener("click", async () => {
    try {
      const answer = await fetch(`/history/${shown.number}/picture.png`);
      await uploadBlob(await answer.blob(), `${shown.picture} ${shown.action} ${shown.seed}.png`);
      say("The result is the picture now.");
    } catch (error) {
      say(error.message, true);
    }
  });
  byId("put-back").addEventListener("click", async () => {
    const entry = shown, view = { zoom: map.getZoom() - picture.top, center: map.project(map.getCenter(), picture.top) };
    const isSame = picture.number === entry.source && picture.factor === 1;
    say("Putting it back …");
    try {
      const copy = await ask(`/api/history/${entry.number}/put-back`, { method: "POST" });
      await addPicture(copy);
      if (!picture || picture.number !== copy.number || job) return; // another one was chosen meanwhile, or a job's square stays
      select(copy.part);
      if (isSame) map.setView(map.unproject(view.center, picture.top), view.zoom + picture.top, { animate: false });
      else map.fitBounds(square.getBounds().pad(1), { animate: false });
      say(`The result stands in a copy of ${entry.picture}, which is the picture now, and the square is there.`);
    } catch (error) {
      say(error.message, true);
    }
  });
  document.addEventListener("visibilitychange", async () => {
    if (document.hidden || !answered) return;
    const state = await ask("/api/state").catch(() => null); // results of other pages
    for (const entry of state ? [...state.history].reverse() : []) addHistory(entry);
  });
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
  });
  if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
  byId("map").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === byId("map")) { event.preventDefault(); clicked(map.getCenter()); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picking) { pick(false); say(""); }
    const types = event.target.matches("textarea, input[type=number]"); // where the browser's own undo is meant
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || types || !painting() || byId("canvas").hidden) return;
    event.preventDefault();
    undo();
  });
  const canvas = byId("canvas");
  canvas.addEventListener("pointerdown", (event) => {
    if (!painting()) return;
    event.preventDefault();
    canvas.focus();
    pointer = placeOf(event);
    if (byId("tool").value === "polygon") { corner(pointer); return; }
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    remember();
    stroke(pointer, pointer);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!painting() || !selection) return;
    const place = placeOf(event);
    if (drawing) stroke(pointer, place);
    pointer = place;
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { drawing = false; });
  canvas.addEventListener("dblclick", () => { closePolygon(); draw(); });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("keydown", (event) => {
    if (!painting()) return;
    const far = event.shiftKey ? 32 : 8, moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    if (moves[event.key]) {
      pointer = pointer.map((value, axis) => Math.max(0, Math.min(value + moves[event.key][axis], selection[2 + axis])));
    } else if (event.key === " " && byId("tool").value !== "polygon") {
      remember();
      stroke(pointer, pointer);
    } else if (event.key === "Enter" && byId("tool").value === "polygon") {
      corner([...pointer]);
    } else if (event.key === "Escape") {
      corners = [];
      byId("undo").disabled = !undone.length;
    } else {
      return;
    }
    event.preventDefault();
    draw();
  });
}

load();
