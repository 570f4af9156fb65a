// Works for page.js beside its thread: opens the networks, scores scans, makes masks and files.
import { Analysis } from './analysis.js';
import { ScanError } from './header.js';
import { openNetworks } from './network.js';

let settings = {},
  networks = {};
let analysis = null; // of the scan that was read last
let isStopped = false;
let current = { threshold: null }; // the mask that was made last

async function read(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new ScanError(`${path} did not load; reload the page.`);
  return new Uint8Array(await answer.arrayBuffer());
}

// Breathes after every slice, so that the page can stop the run.
async function tell(done, total) {
  postMessage({ progress: { done, total } });
  await new Promise((go) => setTimeout(go));
  if (isStopped) throw new ScanError('Stopped: nothing of this scan was analysed.');
}

const encode = (bytes) => new FileReaderSync().readAsDataURL(new Blob([bytes])).split(',')[1];

function maskAt(threshold) {
  if (current.threshold !== threshold) current = { threshold, ...analysis.at(threshold) };
  return current;
}

// What the page shows at a threshold.
function resultAt(threshold) {
  const { mask, millilitres, findings } = maskAt(threshold);
  const outlines = { name: 'outlines.nii', content: encode(analysis.outlines(mask)) };
  return { threshold, millilitres, findings, outlines };
}

const actions = {
  async open() {
    settings = JSON.parse(new TextDecoder().decode(await read('models/models.json')));
    networks = await openNetworks(settings.models, read);
    return settings;
  },
  async analyse({ file, sequence, threshold }) {
    isStopped = false;
    [analysis, current] = [null, { threshold: null }];
    const model = settings.models[sequence];
    const bytes = new Uint8Array(file);
    analysis = await Analysis.of(bytes, model, settings.table, networks[sequence], tell);
    const volumes = model.presets.map((preset) => [
      preset.rate,
      analysis.at(preset.threshold).millilitres,
    ]);
    const { scan, scores, first_slice } = analysis.layers();
    const layers = {
      scan: { name: 'scan.nii', content: encode(scan) },
      scores: { name: 'scores.nii', content: encode(scores) },
      first_slice,
      has_truth: false,
    };
    const {
      unfit,
      warnings,
      looksLike,
      scan: { shape, spacing },
    } = analysis;
    return { layers, unfit, warnings, looksLike, shape, spacing, volumes, ...resultAt(threshold) };
  },
  at: ({ threshold }) => resultAt(threshold),
  maskFile: ({ threshold }) => analysis.maskFile(maskAt(threshold).mask),
  stop() {
    isStopped = true;
  },
};

function explain(error) {
  if (error instanceof ScanError) return error.message;
  if (error instanceof RangeError)
    return 'the browser has not enough memory for this scan; use the command line.';
  return `the scan could not be analysed: ${error.message}`;
}

onmessage = async ({ data: { id, action, given } }) => {
  try {
    postMessage({ id, result: await actions[action](given) });
  } catch (error) {
    console.error(error);
    postMessage({ id, error: explain(error) });
  }
};
