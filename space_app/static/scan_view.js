// Shows a network the slices of a scan and brings its scores back, as the package's
// `scan_view_rasalore.py` does: one square and one scale for all
// slices, their neighbours, both hemispheres.
import { lowerMedianOf, roundToEven } from './arrays.js';
import { ScanError } from './header.js';

const MARGIN = 1.03;
const BRIGHTEST = 4;
const MAD_TO_STD = 1.4826;
const LEAST_MAD = 1e-3;
const [LOW, HIGH] = [-4, 10];
const LARGEST_DIFFERENCE = 6;
const NEAR_MM = 2,
  FAR_MM = 4;
const LEAST_SHARE = 0.05;

export class ScanView {
  // slices (S, H, W), background 0; spacing in mm; size of the network's input in pixels.
  constructor(slices, shape, spacing, { size, neighbour_mm: neighbourMm }) {
    Object.assign(this, { slices, shape, spacing, size, neighbourMm });
    this.measure();
    this.pixelMm = (2 * this.halfSideMm) / size;
    this.step = Math.max(roundToEven(neighbourMm / spacing[0]), 1);
    const [top, height] = this.side(this.row, spacing[1]),
      [left, width] = this.side(this.column, spacing[2]);
    this.box = { top, left, height, width };
    this.shrinkRows = shrinkWeights(height, size);
    this.shrinkColumns = shrinkWeights(width, size);
    this.blurs = [NEAR_MM, FAR_MM].map((sigma) => this.makeBlur(sigma));
    this.seen = new Map(); // slices in the square, by index
  }

  measure() {
    const [depth, height, width] = this.shape;
    const rows = new Float64Array(height),
      columns = new Float64Array(width);
    const inside = this.slices.filter((value) => value > 0);
    if (!inside.length)
      throw new ScanError('a scan must show brain, and no voxel differs from the background.');
    for (let s = 0, at = 0; s < depth; s++) {
      for (let r = 0; r < height; r++) {
        for (let c = 0; c < width; c++, at++) {
          if (!(this.slices[at] > 0)) continue;
          rows[r]++;
          columns[c]++;
        }
      }
    }
    this.median = lowerMedianOf(inside);
    const relative = inside.map((value) => Math.abs(Math.fround(value / this.median) - 1));
    this.mad = Math.max(MAD_TO_STD * lowerMedianOf(relative), LEAST_MAD);
    const [top, bottom] = span(rows),
      [left, right] = span(columns);
    this.row = (top + bottom) / 2;
    this.column = columns.reduce((sum, count, c) => sum + count * (c + 0.5), 0) / inside.length;
    this.halfSideMm =
      MARGIN *
      Math.max(
        ((bottom - top) / 2) * this.spacing[1],
        (this.column - left) * this.spacing[2],
        (right - this.column) * this.spacing[2],
      );
  }

  // First pixel of the square along an axis, and how many there are.
  side(centre, spacing) {
    const length = roundToEven((2 * this.halfSideMm) / spacing);
    return [roundToEven(centre - length / 2), length];
  }

  showsBrain(index) {
    return this.plane(index).some((value) => value > 0);
  }

  plane(index) {
    const size = this.shape[1] * this.shape[2];
    return this.slices.subarray(index * size, (index + 1) * size);
  }

  // Returns pixel values (4, size, size) of a slice: itself, its neighbours, the other hemisphere.
  channels(index) {
    const last = this.shape[0] - 1,
      pixels = this.size ** 2;
    const indices = [Math.max(index - this.step, 0), index, Math.min(index + this.step, last)];
    const [below, own, above] = indices.map((near) => this.see(near));
    const values = new Float32Array(4 * pixels).fill(LOW / 2);
    [own, below, above].forEach(({ relative, brain }, channel) => {
      for (let i = 0; i < pixels; i++) {
        if (brain[i])
          values[channel * pixels + i] = clamp((relative[i] - 1) / this.mad, LOW, HIGH) / 2;
      }
    });
    values.set(this.mirrorDifference([below, own, above]), 3 * pixels);
    return values;
  }

  // Relative intensities and brain of a slice in the square.
  see(index) {
    if (this.seen.has(index)) return this.seen.get(index);
    this.seen.delete(index - 2 * this.step - 1); // no later slice needs it
    const { planes, shares } = this.cropPlane(this.plane(index));
    const relative = this.resize(planes),
      share = this.resize(shares);
    const brain = Uint8Array.from(share, (value) => value >= 0.5);
    relative.forEach((value, i) => {
      relative[i] = brain[i] ? value / Math.max(share[i], 0.5) : 0;
    });
    this.seen.set(index, { relative, brain });
    return this.seen.get(index);
  }

  cropPlane(plane) {
    const { top, left, height, width } = this.box,
      [, rows, columns] = this.shape;
    const planes = new Float32Array(height * width),
      shares = new Float32Array(height * width);
    for (let r = Math.max(top, 0); r < Math.min(top + height, rows); r++) {
      for (let c = Math.max(left, 0); c < Math.min(left + width, columns); c++) {
        const value = plane[r * columns + c],
          at = (r - top) * width + c - left;
        planes[at] = clamp(value / this.median, 0, BRIGHTEST);
        shares[at] = value > 0 ? 1 : 0;
      }
    }
    return { planes, shares };
  }

  resize(values) {
    return resizePlane(values, this.box.width, this.shrinkRows, this.shrinkColumns);
  }

  // --- The other hemisphere ----------------------------------------------------------------------
  makeBlur(sigma) {
    const { size, pixelMm } = this;
    const kernel = new Float32Array(size); // by distance in pixels
    for (let i = 0; i < size; i++) {
      const steps = (i * pixelMm) / sigma;
      kernel[i] = (Math.exp(-(steps ** 2) / 2) * pixelMm) / (sigma * Math.sqrt(2 * Math.PI));
    }
    const across = Math.exp(-((this.neighbourMm / sigma) ** 2) / 2),
      total = 1 + 2 * across;
    return { kernel, across: [across / total, 1 / total, across / total] };
  }

  mirrorDifference(planes) {
    const { size } = this,
      [near, far] = this.blurs.map((blur) => smoothBrain(planes, blur, size));
    const { brain } = planes[1];
    return near.mean.map((value, i) => {
      const row = Math.floor(i / size),
        mirrored = row * size + size - 1 - (i - row * size);
      if (!brain[i] || far.share[mirrored] < LEAST_SHARE) return 0;
      return (
        clamp((value - far.mean[mirrored]) / this.mad, -LARGEST_DIFFERENCE, LARGEST_DIFFERENCE) / 2
      );
    });
  }

  // --- Scores ------------------------------------------------------------------------------------
  // Writes scores (side, side) of the square into a slice (H, W) of zeros, inside the brain.
  placeScores(scores, side, index, target) {
    const { top, left, height, width } = this.box,
      [, rows, columns] = this.shape;
    this.placing ??= [shrinkWeights(side, height), shrinkWeights(side, width)];
    const placed = resizePlane(scores, side, ...this.placing),
      plane = this.plane(index);
    let least = Infinity,
      most = -Infinity;
    for (const score of scores) [least, most] = [Math.min(least, score), Math.max(most, score)];
    for (let r = Math.max(top, 0); r < Math.min(top + height, rows); r++) {
      for (let c = Math.max(left, 0); c < Math.min(left + width, columns); c++) {
        const at = r * columns + c;
        if (plane[at] > 0) target[at] = clamp(placed[(r - top) * width + c - left], least, most);
      }
    }
  }
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function span(counts) {
  return [counts.findIndex((count) => count > 0), counts.findLastIndex((count) => count > 0) + 1];
}

// Gaussian mean over the brain of three slices, and the share of the Gaussian that it saw.
function smoothBrain(planes, { kernel, across }, size) {
  const total = new Float32Array(size ** 2),
    weight = new Float32Array(size ** 2);
  planes.forEach(({ relative, brain }, n) => {
    for (let i = 0; i < total.length; i++) {
      if (!brain[i]) continue;
      total[i] += relative[i] * across[n];
      weight[i] += across[n];
    }
  });
  const share = blurPlane(weight, kernel, size);
  return {
    mean: blurPlane(total, kernel, size).map((value, i) => value / Math.max(share[i], 1e-6)),
    share,
  };
}

// Along columns, turned, and so again: both axes, and the plane as it was.
function blurPlane(plane, kernel, size) {
  const reach = Math.max(
    kernel.findLastIndex((weight) => weight > 1e-9),
    0,
  ); // beyond it nothing counts
  let from = plane;
  for (let pass = 0; pass < 2; pass++) {
    const to = new Float32Array(size ** 2);
    for (let r = 0; r < size; r++) {
      for (let c = 0; c < size; c++) {
        let sum = 0;
        const last = Math.min(c + reach, size - 1);
        for (let i = Math.max(c - reach, 0); i <= last; i++)
          sum += from[r * size + i] * kernel[Math.abs(c - i)];
        to[c * size + r] = sum;
      }
    }
    from = to;
  }
  return from;
}

// --- Bilinear resize, antialiased when it shrinks ------------------------------------------------
// Returns per new pixel the first old one that it is made of, and their weights.
function shrinkWeights(length, size) {
  const scale = length / size,
    reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = scale * (i + 0.5);
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), length);
    const weights = Array.from({ length: end - first }, (_, j) =>
      Math.max(1 - Math.abs(first + j + 0.5 - centre) / reach, 0),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: Float32Array.from(weights, (weight) => weight / total) };
  });
}

function resizePlane(values, width, rows, columns) {
  const height = values.length / width,
    between = new Float32Array(height * columns.length);
  for (let r = 0, at = 0; r < height; r++) {
    for (const { first, weights } of columns) {
      let sum = 0;
      for (let j = 0, from = r * width + first; j < weights.length; j++)
        sum += values[from + j] * weights[j];
      between[at++] = sum;
    }
  }
  const resized = new Float32Array(rows.length * columns.length),
    across = columns.length;
  rows.forEach(({ first, weights }, r) => {
    for (let c = 0; c < across; c++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++)
        sum += between[(first + j) * across + c] * weights[j];
      resized[r * across + c] = sum;
    }
  });
  return resized;
}
