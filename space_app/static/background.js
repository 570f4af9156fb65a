// Makes the background of a scan 0 and its brain more than 0: `BrainSlices` of the package, whose
// file `background.py` states the rule. A number named like one there is the same.
import { Plane, fillHoles, medianOf, rankOf } from './arrays.js';

const SAMPLED_VOXELS = 2 ** 20;
const NEARLY_EQUAL = 0.01;
const SAME = 1e-5;
const RINGING = 0.1;
const FAR = 10;
const FILL_VALUES = [-32768, -32767, -9999, -2048, -2000, -1024, -1000, -999];
const SINGLE_VOXEL = 1.45;
const FEWEST_VOXELS = 100;
const MOST_SINGLE_VOXELS = 64;
const FEW_VOXELS = 4;
const DOMINATED = 4.5;
const MOST_DOMINATED = 0.1;

// Returns `{slices, brainVoxels, lowered, background, equal}`: slices (S, H, W) with background 0,
// how many voxels are brain, were too bright, and have the background's value.
export function zeroBackground(scan) {
  const [depth, height, width] = scan.shape,
    size = height * width;
  const scale = findScale(scan);
  const result = new Float32Array(scan.slices.length);
  const planeOf = (array, index) => array.subarray(index * size, (index + 1) * size);
  const dominated = [];
  let brainVoxels = 0;
  const loweredIn = new Uint32Array(depth);
  for (let index = 0; index < depth; index++) {
    const image = raise(planeOf(scan.slices, index), scale, height, width);
    brainVoxels += image.reduce((sum, value) => sum + (value !== 0), 0);
    const lowered = lowerOutliers(new Plane(image, height, width));
    planeOf(result, index).set(lowered);
    loweredIn[index] = countDifferences(image, lowered);
    if (maxOf(lowered) > fewVoxelsLimit(lowered, DOMINATED, 98)) dominated.push(index);
  }
  for (const index of dominated.length > MOST_DOMINATED * depth ? dominated : []) {
    const plane = planeOf(result, index);
    const cutPlane = cut(plane, fewVoxelsLimit(plane, DOMINATED, 98));
    loweredIn[index] += countDifferences(plane, cutPlane);
    plane.set(cutPlane);
  }
  const equal = scan.slices.reduce((sum, value) => sum + (near(value, scale) ? 1 : 0), 0);
  const lowered = loweredIn.reduce((sum, count) => sum + count, 0);
  return { slices: result, brainVoxels, lowered, background: scale.background, equal };
}

const near = (value, { background, tolerance }) =>
  Math.abs(Math.fround(value - background)) <= tolerance;
const maxOf = (values) => values.reduce((most, value) => (value > most ? value : most), -Infinity);
const countDifferences = (one, other) =>
  one.reduce((sum, value, i) => sum + (value !== other[i]), 0);

function findScale({ slices, shape }) {
  const sample = sampleRows(slices, shape);
  const border = borderOf(slices, shape);
  let background = rankOf(border, 50);
  let { distance, reach } = measureReach(sample, background);
  const limit = Math.fround(NEARLY_EQUAL * reach);
  const equal = border.reduce(
    (sum, value) => sum + (Math.abs(Math.fround(value - background)) <= limit),
    0,
  );
  if (equal < border.length / 2) {
    background = rankOf(sample, 0.01); // brain or noise up to the border
    distance = measureReach(sample, background).distance; // `reach` stays, as in the package
  }
  const tissue = sample.filter((_, i) => distance[i] > limit);
  const tolerance = Math.fround(SAME * reach);
  if (!tissue.length) return { background, zero: background, tolerance, least: 0 };
  const low = rankOf(tissue, 1),
    high = rankOf(tissue, 99);
  const zero = chooseZero(tissue, background, low, high);
  return { background, zero, tolerance, least: Math.fround(SAME * Math.abs(high - zero)) };
}

function sampleRows(slices, [depth, height, width]) {
  const step = Math.ceil(slices.length / SAMPLED_VOXELS);
  if (step === 1) return slices;
  const rows = Math.ceil(height / step),
    sample = new Float32Array(depth * rows * width);
  for (let s = 0, at = 0; s < depth; s++) {
    for (let r = 0; r < height; r += step, at += width) {
      const from = (s * height + r) * width;
      sample.set(slices.subarray(from, from + width), at);
    }
  }
  return sample;
}

function borderOf(slices, [depth, height, width]) {
  const border = [];
  for (let s = 0; s < depth; s++) {
    const at = (r, c) => slices[(s * height + r) * width + c];
    for (let c = 0; c < width; c++) border.push(at(0, c), at(height - 1, c));
    for (let r = 0; r < height; r++) border.push(at(r, 0), at(r, width - 1));
  }
  return Float32Array.from(border);
}

function measureReach(sample, background) {
  const distance = sample.map((value) => Math.abs(value - background));
  const apart = distance.filter((value) => value > 0);
  return { distance, reach: apart.length ? rankOf(apart, 99) : 0 };
}

function chooseZero(tissue, background, low, high) {
  const least = tissue.reduce((found, value) => Math.min(found, value), Infinity);
  const isFill = FILL_VALUES.includes(background) && least >= 0;
  const isNear = high === low || low - background <= FAR * (high - low);
  const limit = low + RINGING * (high - low);
  if (isNear && !isFill && background <= limit) return background;
  return limit >= 0 ? 0 : rankOf(tissue, 0.01);
}

function raise(image, scale, height, width) {
  const { background, zero, tolerance, least } = scale;
  const above = image.map((value) => value - zero);
  if (zero === background) return above.map((value) => (value <= tolerance ? 0 : value));
  let inside = new Uint8Array(image.length);
  image.forEach((value, i) => {
    inside[i] = near(value, scale) ? 0 : 1;
  });
  if (background > zero) inside = fillHoles(inside, [1, height, width]);
  return above.map((value, i) => (inside[i] ? Math.max(value, least) : 0));
}

// --- Voxels far brighter than all around them ----------------------------------------------------
function lowerOutliers(plane) {
  const { values } = plane;
  if (values.reduce((sum, value) => sum + (value !== 0), 0) < FEWEST_VOXELS) return values;
  let { rest, places } = withoutSingleVoxels(plane);
  const limit = fewVoxelsLimit(rest, FEW_VOXELS, 99.5);
  if (maxOf(rest) > limit) rest = cut(rest, limit);
  if (places.length) rest = rest.slice();
  for (const place of places) {
    const brain = plane
      .around(place)
      .map((at) => rest[at])
      .filter((value) => value > 0);
    rest[place] = brain.length ? medianOf(Float32Array.from(brain)) : 0;
  }
  return rest;
}

function withoutSingleVoxels(plane) {
  const image = plane.values,
    places = [];
  let rest = image;
  while (places.length <= MOST_SINGLE_VOXELS) {
    const brightest = rest.indexOf(maxOf(rest));
    const around = plane
      .around(brightest)
      .map((at) => rest[at])
      .sort((one, other) => one - other)
      .at(-2);
    if (!(rest[brightest] > Math.fround(SINGLE_VOXEL * around))) break;
    if (rest === image) rest = image.slice();
    rest[brightest] = 0;
    places.push(brightest);
  }
  const left = maxOf(rest);
  const outliers = places.filter((place) => image[place] > Math.fround(SINGLE_VOXEL * left));
  if (!outliers.length || outliers.length > MOST_SINGLE_VOXELS || left <= 0) {
    return { rest: image, places: [] };
  }
  for (const place of places) if (!outliers.includes(place)) rest[place] = image[place];
  return { rest, places: outliers };
}

function fewVoxelsLimit(image, times, percent) {
  const brain = image.filter((value) => value > 0);
  const mean = brain.reduce((sum, value) => sum + value, 0) / brain.length;
  if (brain.length < FEWEST_VOXELS || maxOf(image) <= times * mean) return Infinity;
  return times * rankOf(brain, percent);
}

function cut(image, limit) {
  const brightest = image.reduce(
    (most, value) => (value <= limit && value > most ? value : most),
    0,
  );
  return image.map((value) => (value > limit ? brightest : value));
}
