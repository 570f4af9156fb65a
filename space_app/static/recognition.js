// Recognises the sequence of a brain from how it looks, as `sequences.py` of the package does, or
// says that it cannot be told.
import { JUDGED_ML } from './anatomy.js';
import { depthsInside, fillHoles, medianOf, percentileOf } from './arrays.js';

const KINDS = ['t1', 't2', 'flair']; // in the order of the table's rows
const SHELLS_MM = [0, 4, 6, 8, 10, 12, 15, 18, 22, 26, 30, 36]; // depths where shells begin
const FEWEST_VOXELS = 20;
const SURE = 0.95;

// Returns "t1" (with or without contrast agent), "t2" or "flair"; null where that cannot be told.
//
// `sample` is what `sampleScan` gives; `table` holds weights (3, 12) and offsets (3).
export function recogniseSequence(sample, { weights, offsets }) {
  const profile = measureProfile(sample);
  if (!profile) return null;
  const logits = weights.map((row, kind) =>
    row.reduce((sum, weight, i) => sum + weight * profile[i], offsets[kind]),
  );
  const shares = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const best = shares.indexOf(Math.max(...shares));
  return shares[best] / shares.reduce((sum, share) => sum + share, 0) >= SURE ? KINDS[best] : null;
}

// The brightness of a brain at each depth below its surface (12), in units of the brain's range.
export function measureProfile({ slices, shape, spacing, brainVoxels }) {
  if ((brainVoxels * spacing[0] * spacing[1] * spacing[2]) / 1000 < JUDGED_ML) return null;
  const brain = new Uint8Array(slices.length);
  slices.forEach((value, i) => {
    brain[i] = value > 0 ? 1 : 0;
  });
  const depths = depthsInside(fillHoles(brain, shape), shape, spacing);
  const shells = SHELLS_MM.map(() => []);
  slices.forEach((value, i) => {
    if (brain[i]) shells[SHELLS_MM.findLastIndex((begin) => depths[i] >= begin)].push(value);
  });
  const values = slices.filter((value) => value > 0);
  const [low, middle, high] = [10, 50, 90].map((percent) => percentileOf(values, percent));
  if (low === high) return null;
  const told = shells.map((shell, i) => i).filter((i) => shells[i].length >= FEWEST_VOXELS);
  const medians = told.map((i) => (medianOf(shells[i]) - middle) / (high - low));
  return SHELLS_MM.map((_, i) => interpolate(i, told, medians));
}

// Between known places; beyond their ends the nearest value.
function interpolate(place, places, values) {
  const next = places.findIndex((known) => known >= place);
  if (next === -1) return values.at(-1);
  if (next === 0 || places[next] === place) return values[next];
  const share = (place - places[next - 1]) / (places[next] - places[next - 1]);
  return values[next - 1] + share * (values[next] - values[next - 1]);
}
