// Finds the connected parts of a mask (26 neighbours), and says how large they are and where.
import { applyAffine } from './geometry.js';

const BOTH_SIDES = 0.25; // share of a finding on its lesser side, from which on it lies on both
const DEPTHS = ['front', 'centre', 'back'];
const HEIGHTS = ['lower third', 'middle third', 'upper third'];

// Returns where scores (S, H, W) are above a threshold, without parts of fewer voxels than
// `smallest`, and the parts that are left, as lists of indices.
export function maskAbove(scores, shape, threshold, smallest) {
  const limit = Math.fround(threshold);
  const mask = new Uint8Array(scores.length);
  for (let at = 0; at < scores.length; at++) mask[at] = scores[at] > limit ? 1 : 0;
  const parts = [];
  for (const part of connectedParts(mask, shape)) {
    if (part.length >= smallest) parts.push(part);
    else for (const at of part) mask[at] = 0;
  }
  return { mask, parts };
}

function connectedParts(mask, [depth, height, width]) {
  const isSeen = new Uint8Array(mask.length),
    parts = [];
  for (let seed = 0; seed < mask.length; seed++) {
    if (!mask[seed] || isSeen[seed]) continue;
    isSeen[seed] = 1;
    const part = [seed];
    for (let next = 0; next < part.length; next++) {
      const column = part[next] % width,
        row = Math.floor(part[next] / width) % height;
      const slice = Math.floor(part[next] / (width * height));
      for (let s = Math.max(slice - 1, 0); s <= Math.min(slice + 1, depth - 1); s++) {
        for (let r = Math.max(row - 1, 0); r <= Math.min(row + 1, height - 1); r++) {
          for (let c = Math.max(column - 1, 0); c <= Math.min(column + 1, width - 1); c++) {
            const at = (s * height + r) * width + c;
            if (!mask[at] || isSeen[at]) continue;
            isSeen[at] = 1;
            part.push(at);
          }
        }
      }
    }
    parts.push(part);
  }
  return parts;
}

// Returns one row per part, the greatest volume times score first: `{millilitres, score, position,
// slice, point}`; slice and point (world, mm) are of its voxel that is nearest to its centre.
//
// `scan` has shape, frame and voxelMl; `brain` is the box that holds the brain.
export function measureFindings(parts, scores, scan, brain) {
  const rows = parts.map((part) => {
    const sum = part.reduce((total, at) => total + scores[at], 0);
    const voxels = part.map((at) => voxelOf(at, scan.shape));
    const nearest = nearestToCentre(voxels);
    return {
      sum,
      millilitres: part.length * scan.voxelMl,
      score: sum / part.length,
      position: positionInWords(voxels, brain),
      slice: nearest[0],
      point: applyAffine(scan.frame, nearest),
    };
  });
  return rows.sort((one, other) => other.sum - one.sum);
}

function voxelOf(at, [, height, width]) {
  return [Math.floor(at / (width * height)), Math.floor(at / width) % height, at % width];
}

function nearestToCentre(voxels) {
  const centre = [0, 1, 2].map(
    (axis) => voxels.reduce((sum, voxel) => sum + voxel[axis], 0) / voxels.length,
  );
  const distance = (voxel) =>
    voxel.reduce((sum, index, axis) => sum + (index - centre[axis]) ** 2, 0);
  return voxels.reduce((best, voxel) => (distance(voxel) < distance(best) ? voxel : best));
}

function positionInWords(voxels, { low, high }) {
  const share = (voxel, axis) => (voxel[axis] + 0.5 - low[axis]) / (high[axis] - low[axis]);
  const third = (axis) => {
    const mean = voxels.reduce((sum, voxel) => sum + share(voxel, axis), 0) / voxels.length;
    return Math.min(Math.max(Math.trunc(3 * mean), 0), 2);
  };
  // Columns run from the patient's right to the left.
  const onLeft = voxels.filter((voxel) => share(voxel, 2) > 0.5).length / voxels.length;
  const isOnBoth = Math.min(onLeft, 1 - onLeft) >= BOTH_SIDES;
  const side = isOnBoth ? 'both sides' : onLeft > 0.5 ? 'left' : 'right';
  return `${side}, ${DEPTHS[third(1)]}, ${HEIGHTS[third(0)]}`;
}
