// Finishes a network's scores: a blur inside the brain, and the map that learns nothing, as
// `free_map.py` of the package does. All arrays are of the box that holds the brain, (S, H, W).
import { medianOf } from './arrays.js';

const INTENSITY_MM = 2,
  MIRROR_MM = 4;
const SAMPLED_VOXELS = 2 ** 20;
const MAD_OF_NORMAL = 1.4826;
const NEXT_TO_END = 2 ** -24;
const TRUNCATE = 4; // standard deviations, where a Gaussian ends

// Scores of one scan's brain in their box; `brain` is 1 there, `slices` are the intensities.
export class Finisher {
  constructor(slices, shape, spacing) {
    Object.assign(this, { slices, shape, spacing });
    this.brain = Float32Array.from(slices, (value) => (value > 0 ? 1 : 0));
    this.voxels = this.brain.reduce((sum, value) => sum + value, 0);
    this.step = Math.ceil(this.voxels / SAMPLED_VOXELS); // which brain voxels tell of all
    this.weights = new Map(); // blurred brain, by millimetres
  }

  // Blurs scores in place, then lets the free map join them.
  finish(scores, smoothMm, weight) {
    if (smoothMm) this.smooth(scores, smoothMm);
    if (!weight) return;
    const offsets = this.offsets(weight);
    for (let i = 0; i < scores.length; i++) {
      if (!this.brain[i]) continue;
      const held = Math.min(Math.max(scores[i], NEXT_TO_END), 1 - NEXT_TO_END);
      scores[i] = 1 / (1 + ((1 - held) / held) * Math.exp(-offsets[i]));
    }
  }

  smooth(values, sigmaMm) {
    if (!this.weights.has(sigmaMm)) {
      const share = this.brain.slice();
      blurVolume(share, this.shape, this.spacing, sigmaMm);
      this.weights.set(sigmaMm, share);
    }
    const share = this.weights.get(sigmaMm);
    blurVolume(values, this.shape, this.spacing, sigmaMm);
    for (let i = 0; i < values.length; i++) {
      values[i] = this.brain[i] ? Math.min(Math.max(Math.fround(values[i] / share[i]), 0), 1) : 0;
    }
  }

  // What is added to the logits: the free map's distance from its median, in standard deviations.
  offsets(weight) {
    const free = this.freeMap();
    const values = free.filter((_, i) => this.brain[i]).filter((_, i) => i % this.step === 0);
    const median = medianOf(values);
    const deviation = MAD_OF_NORMAL * medianOf(values.map((value) => Math.abs(value - median)));
    const factor = deviation > 0 ? Math.fround(weight / deviation) : 0;
    return free.map((value, i) => (this.brain[i] ? Math.fround(value - median) * factor : 0));
  }

  freeMap() {
    const maps = this.ranks(),
      smoother = maps.slice();
    this.smooth(maps, INTENSITY_MM);
    this.smooth(smoother, MIRROR_MM);
    const [depth, height, width] = this.shape,
      mirror = this.mirrorColumns();
    for (let row = 0; row < depth * height; row++) {
      for (let c = 0; c < width; c++) {
        const at = row * width + c;
        if (!this.brain[at]) continue;
        let total = 0,
          known = 0;
        for (const { column, share } of mirror[c]) {
          total += smoother[row * width + column] * share;
          known += this.brain[row * width + column] * share;
        }
        const excess = known >= 0.5 ? smoother[at] - total / known : 0;
        maps[at] = (maps[at] + excess + 1) / 3;
      }
    }
    return maps;
  }

  // Per column the two that its mirror image lies between, with their shares.
  mirrorColumns() {
    const width = this.shape[2];
    let sum = 0;
    for (let i = 0; i < this.brain.length; i++) sum += this.brain[i] * (i % width);
    const midline = sum / this.voxels;
    return Array.from({ length: width }, (_, c) => {
      const place = 2 * midline - c,
        left = Math.floor(place);
      const both = [
        { column: left, share: 1 + left - place },
        { column: left + 1, share: place - left },
      ];
      return both
        .filter(({ column }) => column >= 0 && column < width)
        .map(({ column, share }) => ({ column, share: Math.fround(share) }));
    });
  }

  // Each brain voxel's rank: the share of darker voxels and half of the equal ones.
  ranks() {
    const size = this.shape[1] * this.shape[2],
      sampled = [];
    for (let start = 0; start < this.slices.length; start += size) {
      let count = 0; // every slice is sampled from its first brain voxel on
      for (let i = start; i < start + size; i++) {
        if (this.brain[i] && count++ % this.step === 0) sampled.push(this.slices[i]);
      }
    }
    const sample = Float32Array.from(sampled).sort();
    return this.slices.map((value, i) => {
      if (!this.brain[i]) return 0;
      return (firstAt(sample, value, false) + firstAt(sample, value, true)) / (2 * sample.length);
    });
  }
}

// How many of the sorted values are less than one, or not more.
function firstAt(sorted, value, isBeyond) {
  let low = 0,
    high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value || (isBeyond && sorted[middle] === value)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// --- Gaussians -----------------------------------------------------------------------------------
// Rows, columns, then slices; beyond the ends lie zeros.
function blurVolume(values, [depth, height, width], spacing, sigmaMm) {
  const [across, along, beside] = spacing.map((size) => gaussian(sigmaMm / size));
  const plane = height * width;
  for (let s = 0; s < depth; s++) {
    for (let c = 0; c < width; c++) blurLine(values, s * plane + c, width, height, along);
    for (let r = 0; r < height; r++) blurLine(values, s * plane + r * width, 1, width, beside);
  }
  for (let i = 0; i < plane; i++) blurLine(values, i, plane, depth, across);
}

function gaussian(sigma) {
  const radius = Math.trunc(TRUNCATE * sigma + 0.5);
  const weights = Float64Array.from({ length: 2 * radius + 1 }, (_, i) =>
    Math.exp((-0.5 * (i - radius) ** 2) / sigma ** 2),
  );
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

let line = new Float64Array(0); // the values of one line with zeros beyond its ends

function blurLine(values, start, stride, length, weights) {
  const radius = weights.length >> 1;
  if (line.length < length + 2 * radius) line = new Float64Array(length + 2 * radius);
  line.fill(0);
  let isEmpty = true;
  for (let i = 0; i < length; i++) {
    const value = values[start + i * stride];
    if (value) isEmpty = false;
    line[radius + i] = value;
  }
  if (isEmpty) return;
  for (let i = 0; i < length; i++) {
    let sum = 0;
    for (let j = 0; j < weights.length; j++) sum += line[i + j] * weights[j];
    values[start + i * stride] = sum;
  }
}
