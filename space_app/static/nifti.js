// Reads a scan from the bytes of a NIfTI file, and writes masks on its own grid.
import { applyAffine, placeVoxels } from './geometry.js';
import { FIELDS, ScanError, readHeader, check } from './header.js';

const LARGEST_BYTES = 300_000_000; // of an unpacked file
const OWN_MARK = 'rasalore result'; // in whatever is written, so that a later run knows it again
const MOST_LABELS = 10; // of a label map, with its background

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
        throw new ScanError(
          `the file unpacks to more than ${LARGEST_BYTES / 1e6} MB; use the command line.`,
        );
      }
    }
  } catch (error) {
    if (error instanceof ScanError) throw error;
    throw new ScanError(
      'the file cannot be unpacked: it is damaged, or its gzip data has several ' +
        'parts; unpack it first and give the .nii file.',
    );
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

// Returns a scan in the slice frame: `{slices, shape, spacing, frame, warnings, grid}`; slices
// (S, H, W) are a Float32Array, and `grid` is what `writeMask` needs.
export function readScan(bytes) {
  const header = readHeader(bytes);
  const { shape, spacing, frame, start, steps } = placeVoxels(header);
  const voxels = readVoxels(bytes, header);
  const slices = new Float32Array(voxels.length);
  let at = 0,
    replaced = 0;
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
  return { slices, shape, spacing, frame, warnings, grid: { header, start, steps } };
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
  const areLabels = [...values].every(
    (value) => value >= 0 && value <= 255 && Number.isInteger(value),
  );
  const shown = values.size > 1 && slices.reduce((sum, value) => sum + (value !== 0), 0) >= 100;
  check(
    !shown || !(areLabels || values.size === 2),
    `all voxels are one of ${values.size} values, as in a mask; give the scan instead.`,
  );
}

// Returns the bytes of a mask (S, H, W) of 0 and 1 as NIfTI on the grid of the scan's own file.
//
// Only what tells where voxels lie is taken over: no text of the header can carry a name out.
export function writeMask(mask, { shape, grid: { header, start, steps } }) {
  const fields = FIELDS[header.version],
    offset = fields.least;
  const bytes = new Uint8Array(offset + mask.length),
    view = new DataView(bytes.buffer);
  const put = ([at, kind, width = 0], ...values) =>
    values.forEach((value, i) => {
      const number = kind.startsWith('Big') ? BigInt(value) : value;
      view[`set${kind}`](at + i * width, number, header.littleEndian);
    });
  put([0, 'Int32'], fields.size);
  bytes.set(new TextEncoder().encode(fields.magic[1]), fields.magic[0]);
  if (fields.magicBytes === 8) bytes.set([0, 13, 10, 26, 10], fields.magic[0] + 3);
  for (const name of ['pixdim', 'codes', 'quatern', 'srow']) put(fields[name], ...header[name]);
  put(fields.units, header.unitCode);
  bytes[fields.axes] = header.axesCode;
  put(fields.dim, 3, ...header.shape, 1, 1, 1, 1);
  put(fields.datatype, 2); // uint8
  put(fields.bitpix, 8);
  put(fields.offset, offset);
  put(fields.slope, 1);
  bytes.set(new TextEncoder().encode(OWN_MARK), fields.descrip);
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
  const bytes = new Uint8Array(352 + sizes[0] * sizes[1] * sizes[2]),
    view = new DataView(bytes.buffer);
  view.setInt32(0, 348, true);
  [3, ...sizes, 1, 1, 1, 1].forEach((size, i) => view.setInt16(40 + 2 * i, size, true));
  view.setInt16(70, 2, true);
  view.setInt16(72, 8, true);
  const corner = applyAffine(frame, [low[0], high[1] - 1, high[2] - 1]);
  frame.forEach((row, i) => {
    [-row[2], -row[1], row[0], corner[i]].forEach((value, j) =>
      view.setFloat32(280 + 16 * i + 4 * j, value, true),
    );
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
      for (let c = high[2] - 1; c >= low[2]; c--, at++)
        bytes[at] = values[(s * shape[1] + r) * shape[2] + c];
    }
  }
  return bytes;
}
