// Ranks, medians, holes, depths and boxes of arrays, as numpy and scipy have them.

// The value that many percent of which are smaller.
export function rankOf(values, percent) {
  return sortedCopy(values)[Math.trunc((percent / 100) * (values.length - 1))];
}

// Of two middle values the lower.
export const lowerMedianOf = (values) => sortedCopy(values)[(values.length - 1) >> 1];

// Of two middle values the mean.
export function medianOf(values) {
  const sorted = sortedCopy(values),
    half = values.length >> 1;
  return values.length % 2 ? sorted[half] : Math.fround((sorted[half - 1] + sorted[half]) / 2);
}

// Between two values where the rank lies between them.
export function percentileOf(values, percent) {
  const sorted = sortedCopy(values),
    rank = (percent / 100) * (values.length - 1),
    below = Math.floor(rank);
  return (
    sorted[below] +
    (rank - below) * (sorted[Math.min(below + 1, values.length - 1)] - sorted[below])
  );
}

const sortedCopy = (values) => Float32Array.from(values).sort();

// To whole numbers, halves to the even one, as Python rounds.
export function roundToEven(number) {
  const below = Math.floor(number),
    rest = number - below;
  if (rest !== 0.5) return Math.round(number);
  return below % 2 === 0 ? below : below + 1;
}

// A slice (H, W).
export class Plane {
  constructor(values, height, width) {
    Object.assign(this, { values, height, width });
  }

  // Indices of a pixel and the up to 8 around it.
  around(place) {
    const row = Math.floor(place / this.width),
      column = place % this.width,
      found = [];
    for (let r = Math.max(row - 1, 0); r <= Math.min(row + 1, this.height - 1); r++) {
      for (let c = Math.max(column - 1, 0); c <= Math.min(column + 1, this.width - 1); c++) {
        found.push(r * this.width + c);
      }
    }
    return found;
  }
}

// Returns a mask (S, H, W) with all that its voxels enclose; what leads outside, leads along sides.
// One slice is filled as a plane.
export function fillHoles(mask, shape) {
  const axes = axesOf(shape),
    outside = new Uint8Array(mask.length),
    stack = [];
  const visit = (at) => {
    if (mask[at] || outside[at]) return;
    outside[at] = 1;
    stack.push(at);
  };
  for (let at = 0; at < mask.length; at++) {
    if (axes.some(({ position, length }) => position(at) === 0 || position(at) === length - 1))
      visit(at);
  }
  while (stack.length) {
    const at = stack.pop();
    for (const { position, length, stride } of axes) {
      if (position(at) > 0) visit(at - stride);
      if (position(at) < length - 1) visit(at + stride);
    }
  }
  return outside.map((value) => 1 - value);
}

// Returns mm from each voxel of a mask (S, H, W) to the nearest outside it; beyond the ends of the
// array nothing is inside. One slice is measured as a plane.
export function depthsInside(mask, shape, spacing) {
  let squares = new Float64Array(mask.length);
  mask.forEach((value, at) => {
    squares[at] = value ? Infinity : 0;
  });
  for (const { position, length, stride, axis } of axesOf(shape)) {
    const nearer = squares.slice();
    for (let at = 0; at < mask.length; at++) {
      const place = position(at);
      for (let k = 1; (k * spacing[axis]) ** 2 < nearer[at]; k++) {
        const before = place - k < 0 ? 0 : squares[at - k * stride];
        const after = place + k >= length ? 0 : squares[at + k * stride];
        nearer[at] = Math.min(nearer[at], Math.min(before, after) + (k * spacing[axis]) ** 2);
      }
    }
    squares = nearer;
  }
  return squares.map(Math.sqrt);
}

// Axes along which there is more than one voxel to go.
function axesOf([depth, height, width]) {
  const strides = [height * width, width, 1];
  return [depth, height, width]
    .map((length, axis) => {
      const stride = strides[axis];
      return { axis, length, stride, position: (at) => Math.floor(at / stride) % length };
    })
    .filter(({ axis }) => depth > 1 || axis > 0);
}

// Returns `{low, high}`, the smallest box that holds all values (S, H, W) above 0, or null.
export function boxOf(values, [depth, height, width]) {
  const low = [Infinity, Infinity, Infinity],
    high = [0, 0, 0];
  for (let s = 0, at = 0; s < depth; s++) {
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++, at++) {
        if (!(values[at] > 0)) continue;
        low[0] = Math.min(low[0], s);
        low[1] = Math.min(low[1], r);
        low[2] = Math.min(low[2], c);
        high[0] = Math.max(high[0], s + 1);
        high[1] = Math.max(high[1], r + 1);
        high[2] = Math.max(high[2], c + 1);
      }
    }
  }
  return high[0] ? { low, high } : null;
}

// Copies what a box holds of values (S, H, W) into an array of its own.
export function cutBox(values, [, height, width], { low, high }) {
  const [rows, columns] = [high[1] - low[1], high[2] - low[2]];
  const part = new values.constructor((high[0] - low[0]) * rows * columns);
  for (let s = low[0], at = 0; s < high[0]; s++) {
    for (let r = low[1]; r < high[1]; r++, at += columns) {
      const from = (s * height + r) * width + low[2];
      part.set(values.subarray(from, from + columns), at);
    }
  }
  return part;
}
