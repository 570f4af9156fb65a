// Tells where voxels lie: own order <-> slice frame, as `slice_frame.py` of the package does.
//
// Slice frame: (S, H, W), slices inferior -> superior, rows anterior -> posterior, columns patient
// right -> left. Affines are three rows of four numbers; the world is RAS+ in mm.
import { ScanError, otherUnits, check, unitOf } from './header.js';

const HEAD_MM = [20, 600]; // what a scan of a head covers along an axis
const FINE_VOXELS = 64; // along an axis shorter than a head: no scanner's voxels are as small
const ROUNDING = 3 * 2 ** -23; // of the squared length of a float32 quaternion
const FURTHEST = { z: 2, y: 1, x: 0 };

// Returns `{shape, spacing, frame, start, steps}`: sizes and mm in the order slices, rows, columns;
// frame: slice, row, column -> world; start and steps: offsets of voxels in the file.
export function placeVoxels(header) {
  const affine = chooseForm(header);
  const axes = closestAxes(affine);
  const own = [FURTHEST.z, FURTHEST.y, FURTHEST.x].map((out) =>
    axes.findIndex((axis) => axis.out === out),
  );
  const shape = own.map((axis) => header.shape[axis]);
  // Slices run along +z, rows along -y, columns along -x.
  const isFlipped = own.map((axis, i) => axes[axis].sign !== [1, -1, -1][i]);
  const strides = [1, header.shape[0], header.shape[0] * header.shape[1]];
  const signs = isFlipped.map((flipped) => (flipped ? -1 : 1));
  const last = own.map((axis, i) => (isFlipped[i] ? shape[i] - 1 : 0));
  const unit = chooseUnit(affine, own, shape, header);
  const frame = affine.map((row) => [
    ...own.map((axis, i) => unit * signs[i] * row[axis]),
    unit * (row[3] + own.reduce((sum, axis, i) => sum + row[axis] * last[i], 0)),
  ]);
  return {
    shape,
    frame,
    spacing: measureSpacing(affine, own, unit),
    start: own.reduce((sum, axis, i) => sum + strides[axis] * last[i], 0),
    steps: own.map((axis, i) => signs[i] * strides[axis]),
  };
}

export const applyAffine = (affine, point) =>
  affine.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

function chooseForm(header) {
  const [qform, sform] = header.codes;
  const read = { sform: () => sformOf(header), qform: () => qformOf(header) };
  const problems = [];
  for (const [name, code] of [
    ['sform', sform],
    ['qform', qform],
  ]) {
    if (!code) continue;
    const affine = read[name]();
    if (affine && affine.flat().every(Number.isFinite) && closestAxes(affine)) {
      if (problems.length) header.codes[1] = 0; // so that a mask says the same
      problems.forEach((other) =>
        header.warnings.push(`the ${other} is no affine, so the ${name} is used.`),
      );
      warnOfMirroredForms(header, name, affine);
      return affine;
    }
    problems.push(name);
  }
  check(
    !problems.length,
    `the ${problems.join(' and ')} must map voxels to 3-D space; save the ` +
      'scan with a valid form.',
  );
  header.warnings.push('the header says nothing about orientation; left and right may be swapped.');
  return centredAffine(header);
}

function sformOf({ srow }) {
  return [srow.slice(0, 4), srow.slice(4, 8), srow.slice(8, 12)];
}

// null where the quaternion is longer than that of any rotation.
function qformOf({ quatern, pixdim }) {
  const [b, c, d, ...origin] = quatern,
    rest = 1 - (b * b + c * c + d * d);
  if (!(rest >= -ROUNDING)) return null;
  const a = rest > ROUNDING ? Math.sqrt(rest) : 0;
  const rotation = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const sizes = [pixdim[1], pixdim[2], (pixdim[0] === -1 ? -1 : 1) * pixdim[3]];
  return rotation.map((row, i) => [...row.map((value, j) => value * sizes[j]), origin[i]]);
}

// Where no form is set: the world's centre is the scan's, and x is flipped, as nibabel has it.
function centredAffine({ shape, pixdim }) {
  const sizes = [-pixdim[1], pixdim[2], pixdim[3]];
  return sizes.map((size, i) => {
    const row = [0, 0, 0, (-(shape[i] - 1) / 2) * size];
    row[i] = size;
    return row;
  });
}

function warnOfMirroredForms(header, used, affine) {
  const other = used === 'sform' && header.codes[0] ? qformOf(header) : null;
  if (other && determinant(affine) * determinant(other) < 0) {
    header.warnings.push('sform and qform disagree; left and right may be swapped.');
  }
}

// --- Closest axes --------------------------------------------------------------------------------
// Returns per own axis the world axis it runs along and its sign; null where an axis is lost.
//
// As nibabel's `io_orientation`: the nearest rotation to the affine (its polar factor) decides, the
// own axis that fits best first.
function closestAxes(affine) {
  const lengths = [0, 1, 2].map((j) => Math.hypot(...affine.map((row) => row[j])));
  if (!lengths.every((length) => length > 0 && Number.isFinite(length))) return null;
  const nearest = polarFactor(affine.map((row) => lengths.map((length, j) => row[j] / length)));
  if (!nearest) return null;
  const fit = (j) => Math.max(...nearest.map((row) => row[j] ** 2));
  const free = new Set([0, 1, 2]),
    axes = [];
  for (const j of [0, 1, 2].sort((one, other) => fit(other) - fit(one))) {
    const out = [...free].reduce((best, i) =>
      Math.abs(nearest[i][j]) > Math.abs(nearest[best][j]) ? i : best,
    );
    free.delete(out);
    axes[j] = { out, sign: nearest[out][j] < 0 ? -1 : 1 };
  }
  return axes;
}

// Newton's iteration: the mean of a matrix and its inverse's transpose.
function polarFactor(matrix) {
  let current = matrix;
  for (let step = 0; step < 60; step++) {
    const inverse = inverseTransposed(current);
    if (!inverse) return null;
    const next = current.map((row, i) => row.map((value, j) => (value + inverse[i][j]) / 2));
    const change = Math.max(...next.flat().map((value, n) => Math.abs(value - current.flat()[n])));
    current = next;
    if (change < 1e-15) break;
  }
  return current;
}

function inverseTransposed(m) {
  const size = determinant(m);
  if (!(Math.abs(size) > 1e-12)) return null;
  const at = (i, j) => m[i % 3][j % 3];
  return m.map((_, i) =>
    [0, 1, 2].map(
      (j) => (at(i + 1, j + 1) * at(i + 2, j + 2) - at(i + 1, j + 2) * at(i + 2, j + 1)) / size,
    ),
  );
}

function determinant([a, b, c]) {
  return (
    a[0] * (b[1] * c[2] - b[2] * c[1]) -
    a[1] * (b[0] * c[2] - b[2] * c[0]) +
    a[2] * (b[0] * c[1] - b[1] * c[0])
  );
}

// --- Sizes ---------------------------------------------------------------------------------------
// mm between slices, rows and columns, each at right angles, so that their product is the volume of
// a voxel in sheared scans too.
function measureSpacing(affine, own, unit) {
  const [slices, rows, columns] = own.map((axis) => affine.map((row) => row[axis]));
  const upright = atRightAngles(rows, columns);
  const across = atRightAngles(atRightAngles(slices, columns), upright);
  return [across, upright, columns].map((side) => Math.hypot(...side) * unit);
}

function atRightAngles(vector, axis) {
  const dot = (one, other) => one.reduce((sum, value, i) => sum + value * other[i], 0);
  const share = dot(vector, axis) / dot(axis, axis);
  return vector.map((value, i) => value - share * axis[i]);
}

// Millimetres under another unit's code are taken as such; what no head measures is refused.
function chooseUnit(affine, own, shape, header) {
  const extentIn = (unit) => measureSpacing(affine, own, unit).map((size, i) => size * shape[i]);
  const coversHead = (extent) => {
    const [, middle, longest] = [...extent].sort((one, other) => one - other);
    return middle >= HEAD_MM[0] && longest <= HEAD_MM[1];
  };
  let unit = unitOf(header);
  if (unit !== 1 && coversHead(extentIn(1)) && !coversHead(extentIn(unit))) {
    header.warnings.push(
      'the header names another unit of length, but its numbers are taken as mm.',
    );
    unit = 1;
    header.unitCode = (header.unitCode & ~7) | 2;
  }
  const extent = extentIn(unit),
    words = extent.map((length) => Number(length.toPrecision(4))).join(' x ');
  const isTooFine = shape.some((count, i) => count >= FINE_VOXELS && extent[i] < HEAD_MM[0]);
  const fitsInOther =
    !coversHead(extent) && otherUnits.some((other) => coversHead(extentIn(other)));
  if (fitsInOther || isTooFine || Math.max(...extent) > HEAD_MM[1]) {
    throw new ScanError(
      `a head measures ${HEAD_MM.join(' to ')} mm along each axis, got ${words} mm; ` +
        'write the true voxel sizes and unit into the header.',
    );
  }
  if (Math.min(...extent) < HEAD_MM[0]) {
    header.warnings.push(
      `the scan covers ${words} mm (slices, rows, columns): it is a part of a head, or ` +
        'its voxel sizes are wrong, and volumes in mL with them.',
    );
  }
  return unit;
}
