// Reads a scan from the bytes of a NIfTI file, and writes masks on its own grid.
import { applyAffine, placeVoxels } from './geometry.js';
import { ScanError, readHeader, require } from './header.js';

const LARGEST_BYTES = 300_000_000; // of an unpacked file
const MOST_LABELS = 10; // of a label map, with its background
// What a mask takes over from the scan's header: where its voxels lie, in which unit.
const GEOMETRY_BYTES = { 1: [[76, 108], [39, 40], [123, 124], [252, 328]], 2: [[104, 168], [500, 504], [344, 496], [524, 525]] };
const PLACES = { // of what a mask says otherwise
  1: { dim: [40, 'Int16', 2], datatype: 70, bitpix: 72, offset: [108, 'Float32'], slope: [112, 'Float32'],
    descrip: 148, magic: 344, size: 348, codes: 252, codeBytes: 2, pixdim: [76, 'Float32', 4], units: [123, 'Uint8'], quatern: 256 },
  2: { dim: [16, 'BigInt64', 8], datatype: 12, bitpix: 14, offset: [168, 'BigInt64'], slope: [176, 'Float64'],
    descrip: 240, magic: 4, size: 540, codes: 344, codeBytes: 4, pixdim: [104, 'Float64', 8], units: [500, 'Int32'], quatern: 352 },
};

// Returns the bytes (Uint8Array) of a file, unpacked where it is gzip data.
export async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const parts = [];
  let length = 0;
  try {
    for (const reader = unpacked.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      length += value.length;
      if (length > LARGEST_BYTES) {
        await reader.cancel();
        throw new ScanError(`the file unpacks to more than ${LARGEST_BYTES / 1e6} MB; use the command line.`);
      }
    }
  } catch (error) {
    if (error instanceof ScanError) throw error;
    throw new ScanError('the file cannot be unpacked: it is damaged, or its gzip data has several ' +
      'parts; unpack it first and give the .nii file.');
  }
  return joined(parts, length);
}

export async function pack(bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream('gzip'));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

function joined(parts, length) {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// Returns a scan in the slice frame: `{slices, shape, spacing, frame, warnings, replaced, ...}`;
// slices (S, H, W) are a Float32Array, `replaced` counts NaN or infinite voxels that became 0.
export function readScan(bytes) {
  const header = readHeader(bytes);
  const { shape, spacing, frame, start, steps } = placeVoxels(header);
  const voxels = readVoxels(bytes, header);
  const slices = new Float32Array(voxels.length);
  let at = 0, replaced = 0;
  for (let s = 0; s < shape[0]; s++) {
    for (let r = 0; r < shape[1]; r++) {
      let from = start + s * steps[0] + r * steps[1];
      for (let c = 0; c < shape[2]; c++, from += steps[2], at++) {
        slices[at] = voxels[from];
        if (!Number.isFinite(slices[at])) {
          slices[at] = 0;
          replaced++;
        }
      }
    }
  }
  refuseMask(slices);
  const { warnings } = header;
  if (replaced) warnings.push(`${replaced} NaN or infinite voxels were set to 0.`);
  const grid = { header, headerBytes: bytes.slice(0, PLACES[header.version].size), start, steps };
  return { slices, shape, spacing, frame, warnings, replaced, grid };
}

// In the file's own order, scaled, as float64 numbers that are then rounded to float32.
function readVoxels(bytes, { type, itemBytes, littleEndian, shape, offset, slope, inter }) {
  const count = shape[0] * shape[1] * shape[2];
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, count * itemBytes);
  const read = view[`get${type}`].bind(view);
  const voxels = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const value = Number(read(i * itemBytes, littleEndian));
    voxels[i] = slope === 1 && inter === 0 ? value : value * slope + inter;
  }
  return voxels;
}

// A scan has more values than a mask: few whole numbers, or two of any kind, are a mask's.
function refuseMask(slices) {
  const values = new Set();
  for (const value of slices) {
    values.add(value);
    if (values.size > MOST_LABELS) return;
  }
  const areLabels = [...values].every((value) => value >= 0 && value <= 255 && Number.isInteger(value));
  const shown = values.size > 1 && slices.reduce((sum, value) => sum + (value !== 0), 0) >= 100;
  require(!shown || !(areLabels || values.size === 2),
    `all voxels are one of ${values.size} values, as in a mask; give the scan instead.`);
}

// Returns the bytes of a mask (S, H, W) of 0 and 1 as NIfTI on the grid of the scan's own file.
export function writeMask(mask, { shape, grid: { header, headerBytes, start, steps } }) {
  const { version, littleEndian } = header, places = PLACES[version];
  const offset = version === 1 ? 352 : 544;
  const bytes = new Uint8Array(offset + mask.length), view = new DataView(bytes.buffer);
  const put = ([at, kind], value) =>
    view[`set${kind}`](at, kind.startsWith('Big') ? BigInt(value) : value, littleEndian);
  view.setInt32(0, places.size, littleEndian);
  for (const [from, to] of GEOMETRY_BYTES[version]) bytes.set(headerBytes.subarray(from, to), from);
  header.codes.forEach((code, i) => put([places.codes + i * places.codeBytes, `Int${8 * places.codeBytes}`], code));
  header.pixdim.forEach((size, i) => put([places.pixdim[0] + i * places.pixdim[2], places.pixdim[1]], size));
  header.quatern.forEach((part, i) => put([places.quatern + i * places.pixdim[2], places.pixdim[1]], part));
  put(places.units, header.unitCode);
  bytes.set(headerBytes.subarray(places.magic, places.magic + (version === 1 ? 4 : 8)), places.magic);
  const [dim, kind, width] = places.dim;
  [3, ...header.shape, 1, 1, 1, 1].forEach((size, i) => put([dim + i * width, kind], size));
  put([places.datatype, 'Int16'], 2);
  put([places.bitpix, 'Int16'], 8);
  put(places.offset, offset);
  put(places.slope, 1);
  bytes.set(new TextEncoder().encode('rasalore result'), places.descrip);
  let at = 0;
  for (let s = 0; s < shape[0]; s++) {
    for (let r = 0; r < shape[1]; r++) {
      let to = offset + start + s * steps[0] + r * steps[1];
      for (let c = 0; c < shape[2]; c++, to += steps[2], at++) bytes[to] = mask[at];
    }
  }
  return bytes;
}

// Returns values (S, H, W) from 0 to 255 inside a box as a NIfTI-1 file that runs to the right, the
// front and the top, as the viewer wants them.
export function writeLayer(values, { shape, frame }, { low, high }) {
  const sizes = [2, 1, 0].map((axis) => high[axis] - low[axis]); // columns, rows, slices
  const bytes = new Uint8Array(352 + sizes[0] * sizes[1] * sizes[2]), view = new DataView(bytes.buffer);
  view.setInt32(0, 348, true);
  [3, ...sizes, 1, 1, 1, 1].forEach((size, i) => view.setInt16(40 + 2 * i, size, true));
  view.setInt16(70, 2, true);
  view.setInt16(72, 8, true);
  const corner = applyAffine(frame, [low[0], high[1] - 1, high[2] - 1]);
  frame.forEach((row, i) => {
    [-row[2], -row[1], row[0], corner[i]].forEach((value, j) => view.setFloat32(280 + 16 * i + 4 * j, value, true));
  });
  const lengths = [2, 1, 0].map((axis) => Math.hypot(...frame.map((row) => row[axis])));
  [1, ...lengths].forEach((size, i) => view.setFloat32(76 + 4 * i, size, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, 1, true);
  bytes[123] = 2; // mm
  view.setInt16(254, 1, true);
  bytes.set([0x6e, 0x2b, 0x31], 344); // n+1
  let at = 352;
  for (let s = low[0]; s < high[0]; s++) {
    for (let r = high[1] - 1; r >= low[1]; r--) {
      for (let c = high[2] - 1; c >= low[2]; c--, at++) bytes[at] = values[(s * shape[1] + r) * shape[2] + c];
    }
  }
  return bytes;
}
