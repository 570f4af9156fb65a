// The page's only script. Moves are answered at once, from pictures that are here already; marks
// wait in a line until the server has them on disk, and behind a change of the scan all keys do.

const find = (selector) => element.querySelector(selector);
const pictures = find('#pictures'), filmstrip = find('#filmstrip'), problem = find('#problem');
const ROOT = new URL('label/', document.baseURI).href;
const MARKS = { s: 'begin', e: 'end', h: 'healthy', u: 'unsure', x: 'clear', Enter: 'finish' };
const STEPS = {
  ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
  Home: -Infinity, End: Infinity,
};
const WHITE = 1 / 1.5;  // pictures have greys for what is up to 1.5 times as bright as white

const page = { window: '', suggestions: false };
let scan = null;  // what is shown, with its pictures
let slice = 0;
let grey = { low: 0, high: WHITE };  // shares of the pictures' range that are black and white
const loaded = new Map();  // number of a scan -> promise of it with its pictures

// --- Asking the server ----------------------------------------------------------------------
async function ask(path, content) {
  const request = content && {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(content),
  };
  let response;
  try {
    response = await fetch(ROOT + path, request);
  } catch {
    throw new Error('The server does not answer, so this mark was not written; all marks before it '
      + 'were. Start rasalore label again, then load this page anew.');
  }
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

async function loadPicture(path) {
  const response = await fetch(ROOT + path);
  if (!response.ok) throw new Error(await response.text());
  return createImageBitmap(await response.blob());
}

async function loadScan(number) {
  const answer = await ask(`scan/${number}`);
  if (answer.error) return answer;
  const names = answer.sequences;
  const all = names.map((name) => loadPicture(`picture/${number}/${name}`));
  const strip = await fetch(`${ROOT}picture/${number}/thumbnails`);
  answer.images = await Promise.all(all);
  answer.strip = URL.createObjectURL(await strip.blob());
  return answer;
}

function fetchScan(number) {  // once, also when it was asked for ahead of time
  if (!loaded.has(number)) loaded.set(number, loadScan(number));
  return loaded.get(number);
}

function forget(number) {
  const known = loaded.get(number);
  loaded.delete(number);
  if (known) known.then((old) => {
    if (old.strip) URL.revokeObjectURL(old.strip);
    for (const image of old.images || []) image.close();
  }, () => {});
}

// --- Showing --------------------------------------------------------------------------------
async function show(number) {
  say('');
  find('#status').textContent = 'Loading the scan …';
  let next = await fetchScan(number);
  for (const tried = new Set(); next.error; next = await fetchScan(number)) {  // go on without it
    tried.add(number);
    forget(number);
    listSkipped(next.progress);
    number = next.progress.next;
    if (number === null || tried.has(number)) return end(next.progress);
  }
  for (const other of [...loaded.keys()]) if (other !== number) forget(other);
  const fresh = await ask(`scan/${number}`);  // marks may have changed since it was fetched ahead
  scan = { ...next, marks: fresh.marks, progress: fresh.progress, tint: null, tinted: false };
  slice = scan.first;
  placePictures();
  placeStrip();
  draw();
  tell();
  listSkipped(scan.progress);
  if (scan.progress.next !== null && scan.progress.next !== number) fetchScan(scan.progress.next);
}

function placePictures() {
  pictures.replaceChildren(...scan.sequences.map((name) => {
    const figure = document.createElement('figure');
    const picture = document.createElement('canvas');
    const tint = document.createElement('canvas');
    const caption = document.createElement('figcaption');
    for (const canvas of [picture, tint]) [canvas.width, canvas.height] = scan.size;
    picture.setAttribute('role', 'img');
    tint.className = 'tint';
    tint.setAttribute('aria-hidden', 'true');
    caption.textContent = name.toUpperCase();
    figure.append(picture, tint, caption);
    return figure;
  }));
}

function placeStrip() {
  const height = Math.round(56 * scan.size[1] / scan.size[0]);
  filmstrip.replaceChildren();
  for (let index = scan.first; index <= scan.last; index += 1) {
    const cell = document.createElement('div');
    const number = document.createElement('span');
    cell.style.cssText = `width:56px;height:${height + 5}px;background-image:url(${scan.strip});`
      + `background-position:${-56 * (index - scan.first)}px 0;background-repeat:no-repeat`;
    cell.append(number);
    cell.addEventListener('click', () => enqueue({ target: index }));
    filmstrip.append(cell);
  }
  filmstrip.setAttribute('aria-valuemin', scan.first);
  filmstrip.setAttribute('aria-valuemax', scan.last);
}

function draw() {
  const [width, height] = scan.size;
  const cell = slice - scan.first;
  const left = (cell % scan.columns) * width, top = Math.floor(cell / scan.columns) * height;
  const bright = 1 / (grey.high + grey.low), contrast = (grey.high + grey.low) / (grey.high - grey.low);
  for (const [place, figure] of [...pictures.children].entries()) {
    const [picture, tint] = figure.querySelectorAll('canvas');
    const area = [left, top, width, height, 0, 0, width, height];
    picture.getContext('2d').drawImage(scan.images[place], ...area);
    picture.style.filter = `brightness(${bright}) contrast(${contrast})`;
    picture.setAttribute('aria-label', `${scan.sequences[place]}, slice ${slice}`);
    const over = tint.getContext('2d');
    over.clearRect(0, 0, width, height);
    if (scan.tinted) over.drawImage(scan.tint, ...area);
  }
  const current = filmstrip.children[cell], before = filmstrip.querySelector('.current');
  if (before) before.classList.remove('current');
  current.classList.add('current');
  filmstrip.scrollLeft = current.offsetLeft - filmstrip.offsetLeft - filmstrip.clientWidth / 2 + 28;
  filmstrip.setAttribute('aria-valuenow', slice);
  filmstrip.setAttribute('aria-valuetext', `slice ${slice}, ${nameOf(slice)}`);
  describe();
}

const within = (ranges, index) => ranges.some(([first, last]) => first <= index && index <= last);

function kindOf(index) {
  const marks = scan.marks;
  if (within(marks.unsure, index)) return 'unsure';
  if (within(marks.lesion, index)) return 'lesion';
  if (marks.begun === index) return 'begun';
  return marks.complete ? 'healthy' : '';
}

const SIGNS = { unsure: '?', lesion: 'L', begun: 'S', healthy: '✓', '': '' };
const NAMES = {
  unsure: 'unsure', lesion: 'lesion', begun: 'a lesion begins', healthy: 'healthy', '': 'no label',
};
const nameOf = (index) => NAMES[kindOf(index)];

function tell() {  // what is marked, in the filmstrip and in words
  for (const [place, cell] of [...filmstrip.children].entries()) {
    const index = scan.first + place, kind = kindOf(index);
    cell.classList.remove('unsure', 'lesion', 'begun', 'healthy');
    if (kind) cell.classList.add(kind);
    cell.firstChild.textContent = `${index} ${SIGNS[kind]}`;
  }
  const { finished, total } = scan.progress;
  find('#progress').textContent = `${finished} of ${total} scans labelled by now · ${page.labeller} · ${page.table}`;
  const notes = [scan.reason, ...scan.notes].filter(Boolean).map((text) => ` — ${text}`).join('');
  find('#scan').textContent = `${scan.volume}: slices ${scan.first} to ${scan.last} of `
    + `${scan.labelled.toUpperCase()}${notes}`;
  describe();
}

function describe() {
  const { lesion, unsure, begun, complete } = scan.marks;
  const words = (ranges) => ranges.map(([a, b]) => (a === b ? `${a}` : `${a} to ${b}`)).join(', ');
  const parts = [`Slice ${slice}: ${nameOf(slice)}.`];
  if (lesion.length) parts.push(`Lesion in slices ${words(lesion)}.`);
  if (begun !== null) parts.push(`A lesion begins in slice ${begun}; E marks its last slice.`);
  if (unsure.length) parts.push(`Unsure of ${words(unsure)}.`);
  if (complete) parts.push('All other slices are healthy.');
  find('#status').textContent = parts.join(' ');
  find('[data-key="t"]').setAttribute('aria-pressed', String(scan.tinted));
}

function say(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

function listSkipped(progress) {
  const section = find('#skipped');
  section.hidden = !progress.skipped.length;
  section.querySelector('ul').replaceChildren(...progress.skipped.map(({ volume, reason }) => {
    const item = document.createElement('li');
    item.textContent = `${volume}: ${reason}`;
    return item;
  }));
}

function end(progress) {
  const { finished, total, skipped } = progress;
  const left = total - finished - skipped.length;
  const rest = left ? `${left} without labels; N goes through them again.` : 'Nothing is left to label.';
  element.dataset.finished = String(!left);
  find('#progress').textContent = `${finished} of ${total} scans labelled · ${page.table}`;
  find('#status').textContent = `${rest} This page can be closed, and rasalore label ended with Ctrl-C.`;
}

// --- Keys -----------------------------------------------------------------------------------
const waiting = [];  // the first one is being answered
const changesScan = ({ key }) => ['Enter', 'z', 'n', 'p'].includes(key);
const isMove = ({ key, target }) => target !== undefined || key in STEPS;

async function enqueue(command) {
  const later = waiting.some(changesScan);  // its slice is one of the scan that comes then
  if (isMove(command) && !later) return move(command);
  waiting.push(later ? command : { ...command, at: slice });
  if (waiting.length > 1) return;
  while (waiting.length) {
    try {
      await run(waiting[0]);
    } catch (error) {
      say(error.message);
      waiting.length = 0;
    }
    waiting.shift();
  }
}

function move({ key, target }) {
  if (!scan) return;
  slice = Math.min(Math.max(target ?? slice + STEPS[key], scan.first), scan.last);
  draw();
}

async function run(command) {
  const { key, at } = command;
  if (!scan) return;
  if (isMove(command)) return move(command);
  say('');
  if (key === 't') changeTint();
  else if (key === 'n' || key === 'p') await step(key === 'n' ? 1 : -1);
  else await press(key, at ?? slice);
}

async function press(key, at) {
  const action = key === 'z' ? 'undo' : MARKS[key];
  const answer = await ask('press', { window: page.window, action, number: scan.number, slice: at });
  if (answer.error) throw new Error(answer.error);
  if (action === 'undo' && answer.number !== scan.number) return show(answer.number);
  Object.assign(answer, action === 'undo' ? await ask(`scan/${scan.number}`) : {});
  scan.marks = answer.marks;
  scan.progress = answer.progress;
  tell();
  if (action !== 'finish') return;
  if (answer.progress.next === null) end(answer.progress);
  else await show(answer.progress.next);
}

async function step(by) {
  const total = scan.progress.total;
  if (by > 0 && scan.progress.next !== null) await show(scan.progress.next);
  else await show((scan.number + by + total) % total);
}

function changeTint() {  // marks go on while the model looks
  const asked = scan;
  if (asked.tint) {
    asked.tinted = !asked.tinted;
    draw();
  } else if (!asked.asking) {
    asked.asking = true;
    say('The model looks at this scan; that may take a minute. Labelling can go on.');
    loadPicture(`suggestion/${asked.number}`).then((tint) => {
      Object.assign(asked, { tint, tinted: true });
      if (scan === asked) { say(''); draw(); }
    }, (error) => {
      asked.asking = false;
      if (scan === asked) say(error.message);
    });
  }
}

document.addEventListener('keydown', (event) => {
  if (!element.isConnected || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const undo = key === 'z' && (event.ctrlKey || event.metaKey);
  if ((event.ctrlKey || event.metaKey) && !undo) return;
  if (!(key in MARKS || key in STEPS || 'ztnp'.includes(key))) return;
  if (key === 'Enter' && event.target.closest('button, a')) return;  // it presses that
  event.preventDefault();
  if (event.repeat && !(key in STEPS)) return;  // a mark that is held is one mark
  enqueue({ key });
});
for (const button of element.querySelectorAll('#keys button')) {
  button.addEventListener('click', () => { button.blur(); enqueue({ key: button.dataset.key }); });
}

// --- Window and level by drag ---------------------------------------------------------------
let grip = null;
pictures.addEventListener('pointerdown', (event) => {
  grip = { x: event.clientX, y: event.clientY, ...grey };
  pictures.setPointerCapture(event.pointerId);
});
pictures.addEventListener('pointermove', (event) => {
  if (!grip || !scan) return;
  const width = Math.max(grip.high - grip.low + (event.clientX - grip.x) / 400, 0.02);
  const level = (grip.high + grip.low) / 2 + (event.clientY - grip.y) / 400;
  const low = Math.max(level - width / 2, 0);  // nothing is darker than the background
  grey = { low, high: low + width };
  draw();
});
pictures.addEventListener('pointerup', () => { grip = null; });
pictures.addEventListener('dblclick', () => { grey = { low: 0, high: WHITE }; if (scan) draw(); });
pictures.addEventListener('wheel', (event) => {
  event.preventDefault();
  enqueue({ key: event.deltaY > 0 ? 'ArrowLeft' : 'ArrowRight' });
}, { passive: false });

window.addEventListener('resize', () => { if (scan) draw(); });

(async () => {
  try {
    Object.assign(page, await ask('open'));
    find('[data-key="t"]').disabled = !page.suggestions;
    find('#notes').replaceChildren(...page.notes.map((text) => {
      const item = document.createElement('li');
      item.textContent = text;
      return item;
    }));
    await show(page.number);
  } catch (error) {
    say(error.message);
  }
})();
