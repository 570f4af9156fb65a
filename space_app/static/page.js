// What the page shows when: nothing yet, a scan on its way, an error, or a result. The work is done
// in worker.js; nothing is sent anywhere.
import { guessSequence } from './sequence.js';
import { writeFindings, writeResult } from './words.js';

const find = (name) => document.querySelector(name);
const controls = new window.Controls({ address: () => 'niivue/niivue.umd.js' });
const worker = new Worker('worker.js', { type: 'module' });
const waiting = new Map(); // id of a request -> what takes its answer
let settings = null; // models.json
let chosen = null; // {name, bytes} of the file that a person chose
let result = null; // of the scan on the screen, with its name and sequence
let began = 0;

// Returns what the worker answers; throws its sentence.
function ask(action, given) {
  const id = crypto.randomUUID?.() ?? String(Math.random());
  worker.postMessage({ id, action, given });
  return new Promise((done, failed) => waiting.set(id, { done, failed }));
}

worker.onmessage = ({ data }) => {
  if (data.progress) return tellProgress(data.progress);
  const { done, failed } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) failed(new Error(data.error));
  else done(data.result);
};
worker.onerror = () =>
  fail('This browser cannot run the page: it needs WebAssembly and module workers.');

function setState(state) {
  document.body.dataset.state = state;
  find('#choice').inert = state === 'running';
  find('#running').hidden = state !== 'running';
}

function tell(text) {
  find('#message').textContent = text;
  find('#message').hidden = !text;
  if (text) find('#message').focus();
}

function fail(text) {
  if (document.body.dataset.state !== 'result') setState('error');
  find('#status').textContent = '';
  tell(text);
}

function tellProgress({ done, total }) {
  if (!done) began = performance.now();
  const left = done ? ((performance.now() - began) / 1000 / done) * (total - done) : 0;
  const bar = find('#bar');
  [bar.max, bar.value] = [total, done];
  find('#slices-told').textContent =
    done < total
      ? `Slice ${done} of ${total}${done ? `, ${Math.ceil(left)} s left` : ''}`
      : 'All slices are scored, the mask is being made …';
}

// --- A scan --------------------------------------------------------------------------------------
const sequence = () => find('[name=sequence]:checked')?.value ?? null;

async function choose(file) {
  if (!file) return;
  chosen = { name: file.name, bytes: await file.arrayBuffer() };
  find('#chosen').textContent = file.name;
  const guess = guessSequence(file.name);
  for (const radio of document.querySelectorAll('[name=sequence]'))
    radio.checked = radio.value === guess;
  const silent = 'The file’s name does not tell its sequence: choose it.';
  const other = `The file’s name says ${guess?.toUpperCase()}, which this page does not read.`;
  const agreed = 'The file’s name says so; correct it if it is wrong.';
  find('#guess').textContent = sequence() ? agreed : guess ? other : silent;
  allow();
}

const allow = () => {
  find('#analyse').disabled = !(settings && chosen && sequence());
};

async function analyse() {
  const { name, bytes } = chosen,
    read = sequence();
  tell('');
  setState('running');
  find('#status').textContent = `Reading and scoring ${name} …`;
  find('#slices-told').textContent = '';
  find('#stop').focus();
  try {
    const { threshold } = settings.models[read];
    result = {
      name,
      sequence: read,
      ...(await ask('analyse', { file: bytes, sequence: read, threshold })),
    };
  } catch (error) {
    return fail(`${name}: ${error.message}`);
  }
  judgeSequence(guessSequence(name));
  find('#status').textContent = '';
  offerPresets();
  setState('result');
  showNumbers();
  find('#result').focus({ preventScroll: true });
  find('#result').scrollIntoView();
  if (!(await controls.draw({ ...result.layers, outlines: result.outlines }))) {
    document.body.classList.add('no-webgl');
  }
}

// A contradiction of the file's name is red. One of the image is so where the name does not decide,
// else a note: of 210 real scans that an image told, it told 7 wrong.
function judgeSequence(named) {
  const { sequence: read, looksLike, unfit, warnings } = result;
  if (named && named !== read) {
    unfit.unshift(
      `The file’s name says ${named.toUpperCase()}, but it was read as ${read.toUpperCase()}: ` +
        'expect nothing of the result.',
    );
  }
  if (looksLike && looksLike !== read) {
    (named === read ? warnings : unfit).push(
      `Its image looks like a ${looksLike.toUpperCase()}, but it was read as ` +
        `${read.toUpperCase()}: check which of them is right.`,
    );
  }
}

function showNumbers() {
  const model = settings.models[result.sequence];
  const preset = model.presets.find(({ threshold }) => threshold === result.threshold);
  const source = preset ? `Threshold ${preset.source}.` : 'Threshold chosen on the slider.';
  find('#summary').innerHTML = writeResult(result, { ...result, source });
  find('#findings').innerHTML = writeFindings(result, settings.disclaimer);
}

// --- Thresholds ----------------------------------------------------------------------------------
function offerPresets() {
  const { presets, threshold } = settings.models[result.sequence],
    volumes = new Map(result.volumes);
  find('#presets').innerHTML = presets
    .map(
      (preset) => `<label><input type="radio" name="preset"
    value="${preset.threshold}"${preset.threshold === threshold ? ' checked' : ''}>
    ${100 * preset.rate} in 100 healthy voxels: ${volumes.get(preset.rate).toFixed(1)} mL</label>`,
    )
    .join('');
  find('#threshold').value = threshold;
  find('#threshold-value').textContent = threshold.toFixed(2);
}

async function setThreshold(threshold) {
  find('#threshold').value = threshold;
  find('#threshold-value').textContent = threshold.toFixed(2);
  for (const radio of document.querySelectorAll('[name=preset]'))
    radio.checked = Number(radio.value) === threshold;
  Object.assign(result, await ask('at', { threshold }));
  showNumbers();
  if (controls.viewer) await controls.viewer.outline(result.outlines);
  find('#status').textContent = find('#headline').textContent;
}

// --- Files to take away --------------------------------------------------------------------------
const stem = () => result.name.replace(/\.nii(\.gz)?$/i, '');

async function saveMask() {
  window.Controls.save(
    `${stem()}_mask.nii.gz`,
    await ask('maskFile', { threshold: result.threshold }),
  );
}

function saveNumbers() {
  const { name, threshold, millilitres, unfit, warnings, shape, spacing } = result;
  const { name: model, weights_sha256 } = settings.models[result.sequence];
  const findings = result.findings.map(
    ({ millilitres: volume, score, position, slice, point }) => ({
      millilitres: volume,
      mean_score: score,
      position,
      slice,
      point_mm: point,
    }),
  );
  const report = {
    disclaimer: settings.disclaimer,
    input: name,
    modality: result.sequence,
    modality_source: 'chosen on the page',
    model: { name: model, weights_sha256 },
    threshold,
    millilitres,
    millilitres_at_rates: Object.fromEntries(result.volumes),
    unfit_because: unfit,
    warnings,
    shape,
    spacing_mm: spacing,
    findings,
  };
  window.Controls.save(
    `${stem()}_summary.json`,
    new TextEncoder().encode(JSON.stringify(report, null, 2)),
  );
}

// --- The page ------------------------------------------------------------------------------------
function listen(example) {
  find('#file').addEventListener('change', (event) => choose(event.target.files[0]));
  const drop = find('#choice');
  drop.addEventListener('dragover', (event) => event.preventDefault());
  drop.addEventListener('drop', (event) => {
    event.preventDefault();
    choose(event.dataTransfer.files[0]);
  });
  find('#example').addEventListener('click', async () => {
    await choose(new File([example], 'synthetic_t2.nii.gz'));
    analyse();
  });
  find('#sequences').addEventListener('change', allow);
  find('#analyse').addEventListener('click', analyse);
  find('#stop').addEventListener('click', () => ask('stop'));
  find('#presets').addEventListener('change', (event) => setThreshold(Number(event.target.value)));
  find('#threshold').addEventListener('change', (event) =>
    setThreshold(Number(event.target.value)),
  );
  find('#save-mask').addEventListener('click', saveMask);
  find('#save-numbers').addEventListener('click', saveNumbers);
}

// All is loaded before the first scan, so that the network can be cut.
async function open() {
  find('#status').textContent = 'Loading the models …';
  const asked = ['browser/viewer.html', 'example/synthetic_t2.nii.gz'].map(async (path) =>
    (await fetch(path)).blob(),
  );
  const [viewer, example] = await Promise.all(asked);
  find('#viewer').innerHTML = await viewer.text();
  listen(example);
  settings = await ask('open');
  find('#status').textContent = '';
  document.body.dataset.ready = '';
  allow();
}

setState('empty');
open().catch((error) => fail(error.message));
