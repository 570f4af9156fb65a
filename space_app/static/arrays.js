// Ranks, medians, holes and boxes of arrays, as numpy and scipy have them.

// The value that many percent of which are smaller.
export function rankOf(values, percent) {
  return sortedCopy(values)[Math.trunc((percent / 100) * (values.length - 1))];
}

// Of two middle values the lower.
export const lowerMedianOf = (values) => sortedCopy(values)[(values.length - 1) >> 1];

// Of two middle values the mean.
export function medianOf(values) {
  const sorted = sortedCopy(values), half = values.length >> 1;
  return values.length % 2 ? sorted[half] : Math.fround((sorted[half - 1] + sorted[half]) / 2);
}

const sortedCopy = (values) => Float32Array.from(values).sort();

// To whole numbers, halves to the even one, as Python rounds.
export function roundToEven(number) {
  const below = Math.floor(number), rest = number - below;
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
    const row = Math.floor(place / this.width), column = place % this.width, found = [];
    for (let r = Math.max(row - 1, 0); r <= Math.min(row + 1, this.height - 1); r++) {
      for (let c = Math.max(column - 1, 0); c <= Math.min(column + 1, this.width - 1); c++) {
        found.push(r * this.width + c);
      }
    }
    return found;
  }
}

// Returns a mask (H, W) with all that its pixels enclose; what leads outside, leads along sides.
export function fillHoles(mask, height, width) {
  const outside = new Uint8Array(mask.length), stack = [];
  const visit = (row, column) => {
    const at = row * width + column;
    if (row < 0 || column < 0 || row >= height || column >= width || mask[at] || outside[at]) return;
    outside[at] = 1;
    stack.push([row, column]);
  };
  for (let row = 0; row < height; row++) [0, width - 1].forEach((column) => visit(row, column));
  for (let column = 0; column < width; column++) [0, height - 1].forEach((row) => visit(row, column));
  while (stack.length) {
    const [row, column] = stack.pop();
    visit(row - 1, column);
    visit(row + 1, column);
    visit(row, column - 1);
    visit(row, column + 1);
  }
  return outside.map((value) => 1 - value);
}

// Returns `{low, high}`, the smallest box that holds all values (S, H, W) above 0; null without any.
export function boxOf(values, [depth, height, width]) {
  const low = [Infinity, Infinity, Infinity], high = [0, 0, 0];
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
