// Tells a brain alone from a whole head and from what is no brain, as `anatomy.py` of the package
// does. A number named like one there is the same.
import { depthsInside, fillHoles, medianOf, percentileOf } from './arrays.js';
import { zeroBackground } from './background.js';

const SAMPLE_MM = 2;
const FAINT = 0.1;
const PROFILE_SLICES = 9;
const RIM_MM = 8;
const TISSUE_MM = 3,
  FIELD_MM = 12;
const SURE_SKULL = 0.4,
  NO_SKULL = 0.95;
const BRAIN_ML = 1300,
  HEAD_ML = 2000;
const TALLEST = 1;
const LEAST_GRAIN = 0.04;
const SKULL_REACH_MM = 30;
const FEWEST_VOXELS = 100;
export const JUDGED_ML = 300;

// Returns some of a scan's voxels, at most 2 mm apart where its own are: `{slices, shape, spacing,
// brainVoxels}` with background 0.
export function sampleScan({ slices, shape, spacing }) {
  const steps = spacing.map((size) => Math.max(Math.trunc(SAMPLE_MM / size), 1));
  const sizes = shape.map((count, axis) => Math.ceil(count / steps[axis]));
  const sampled = new Float32Array(sizes[0] * sizes[1] * sizes[2]);
  let at = 0;
  for (let s = 0; s < shape[0]; s += steps[0]) {
    for (let r = 0; r < shape[1]; r += steps[1]) {
      for (let c = 0; c < shape[2]; c += steps[2], at++)
        sampled[at] = slices[(s * shape[1] + r) * shape[2] + c];
    }
  }
  const images = zeroBackground({ slices: sampled, shape: sizes });
  return { ...images, shape: sizes, spacing: spacing.map((size, axis) => size * steps[axis]) };
}

// Returns `{millilitres, skullContrast, tallness, grain}` of a sampled scan; null for a blank one.
export function measureAnatomy({ slices, shape, spacing, brainVoxels }) {
  if (!brainVoxels) return null;
  const [depth, height, width] = shape,
    size = height * width;
  const faint = Math.fround(
    FAINT *
      percentileOf(
        slices.filter((value) => value > 0),
        98,
      ),
  );
  const planes = Array.from({ length: depth }, (_, s) => {
    const image = slices.subarray(s * size, (s + 1) * size);
    const outline = outlineOf(image, faint, height, width);
    return { image, outline, count: outline.reduce((sum, value) => sum + value, 0) };
  });
  const area = spacing[1] * spacing[2],
    most = Math.max(...planes.map(({ count }) => count));
  const wide = planes.filter(({ count }) => count >= most / 2);
  const step = Math.max(Math.floor(wide.length / PROFILE_SLICES), 1);
  const grains = wide
    .filter((_, i) => i % step === 0)
    .map((plane) => measureGrain(plane, height, width, spacing));
  return {
    millilitres: (planes.reduce((sum, { count }) => sum + count, 0) * area * spacing[0]) / 1000,
    skullContrast: skullContrast(planes, height, width, spacing),
    tallness: (wide.length * spacing[0]) / Math.sqrt(most * area),
    grain: medianOf(grains),
  };
}

// Returns what is wrong with a scan as one of a brain alone, in a sentence; null where nothing is.
export function problemOf({ millilitres, skullContrast: contrast, tallness, grain }) {
  if (millilitres < JUDGED_ML) return null;
  const share = Math.min(Math.max((millilitres - BRAIN_ML) / (HEAD_ML - BRAIN_ML), 0), 1);
  if (contrast < SURE_SKULL + share * (NO_SKULL - SURE_SKULL)) {
    return (
      `It shows ${millilitres.toFixed(0)} mL with a dark shell below the surface ` +
      `(${contrast.toFixed(2)} of the brightness beside it), as a head with skull has: ` +
      'give the brain alone.'
    );
  }
  if (tallness > TALLEST) {
    return (
      `What it shows is ${tallness.toFixed(1)} times as tall as wide, as a limb, a neck or a ` +
      'test object is and no brain.'
    );
  }
  if (grain < LEAST_GRAIN) {
    return `What it shows varies by ${(100 * grain).toFixed(0)} % inside, as no brain does.`;
  }
  return null;
}

function outlineOf(image, limit, height, width) {
  const above = new Uint8Array(image.length);
  image.forEach((value, i) => {
    above[i] = value > limit ? 1 : 0;
  });
  return fillHoles(above, [1, height, width]);
}

// How bright the darkest shell around the brain is, compared with both its sides.
function skullContrast(planes, height, width, spacing) {
  const areas = planes.map(({ image }) => image.reduce((sum, value) => sum + (value !== 0), 0));
  const large = planes.filter((_, i) => areas[i] >= Math.max(...areas) / 2);
  const step = Math.max(spacing[1], spacing[2]),
    every = Math.max(Math.floor(large.length / PROFILE_SLICES), 1);
  const shells = Array.from({ length: Math.max(Math.round(SKULL_REACH_MM / step), 3) }, () => []);
  for (const { image } of large.filter((_, i) => i % every === 0)) {
    const brightest = image.reduce((most, value) => Math.max(most, value), 0);
    const outline = outlineOf(image, Math.fround(brightest / 10), height, width);
    depthsInside(outline, [1, height, width], spacing).forEach((depth, i) =>
      shells[Math.floor(depth / step) - 1]?.push(image[i]),
    );
  }
  const medians = shells.filter((shell) => shell.length >= FEWEST_VOXELS).map(medianOf);
  const contrasts = medians
    .slice(1, -1)
    .map(
      (median, i) =>
        median / Math.min(Math.max(...medians.slice(0, i + 1)), Math.max(...medians.slice(i + 2))),
    );
  return contrasts
    .filter(Number.isFinite)
    .reduce((least, value) => Math.min(least, value), contrasts.length ? Infinity : 1);
}

// How much a slice varies inside its outline, uneven brightness apart.
function measureGrain({ image, outline }, height, width, spacing) {
  const depths = depthsInside(outline, [1, height, width], spacing);
  if (!depths.some((depth) => depth > RIM_MM)) return 1; // too small to tell
  const blur = (distance, least) => {
    const sigmas = [distance / spacing[1], distance / spacing[2]];
    const weighted = blurReflected(
      image.map((value, i) => value * outline[i]),
      height,
      width,
      sigmas,
    );
    const weights = blurReflected(Float32Array.from(outline), height, width, sigmas);
    return weighted.map((value, i) => Math.max(value / Math.max(weights[i], 1e-3), least));
  };
  const tissue = blur(TISSUE_MM, -Infinity),
    field = blur(FIELD_MM, 1e-6);
  const inner = tissue.map((value, i) => value / field[i]).filter((_, i) => depths[i] > RIM_MM);
  return percentileOf(inner, 90) - percentileOf(inner, 10);
}

// A Gaussian along rows and columns; beyond its edges a slice goes on as its mirror image.
function blurReflected(plane, height, width, sigmas) {
  let from = plane;
  for (const [axis, length, stride] of [
    [0, height, width],
    [1, width, 1],
  ]) {
    const radius = Math.trunc(4 * sigmas[axis] + 0.5),
      to = new Float32Array(plane.length);
    const weights = Array.from({ length: radius + 1 }, (_, i) =>
      Math.exp((-0.5 * i ** 2) / sigmas[axis] ** 2),
    );
    const total = weights.reduce((sum, weight) => sum + 2 * weight, -1);
    for (let at = 0; at < plane.length; at++) {
      const place = Math.floor(at / stride) % length;
      let sum = 0;
      for (let i = -radius; i <= radius; i++) {
        const turn = (((place + i) % (2 * length)) + 2 * length) % (2 * length);
        const mirrored = turn < length ? turn : 2 * length - 1 - turn;
        sum += from[at + (mirrored - place) * stride] * weights[Math.abs(i)];
      }
      to[at] = sum / total;
    }
    from = to;
  }
  return from;
}
