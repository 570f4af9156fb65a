// Reads a NIfTI header, and refuses what cannot be true, as `header_guard.py` of the package does.

const NUMBER_TYPES = {
  // code -> name of the typed array, and of the DataView's getter
  2: 'Uint8',
  4: 'Int16',
  8: 'Int32',
  16: 'Float32',
  64: 'Float64',
  256: 'Int8',
  512: 'Uint16',
  768: 'Uint32',
  1024: 'BigInt64',
  1280: 'BigUint64',
};
const OTHER_TYPES = { 1: 'bit', 32: 'complex', 128: 'RGB', 1792: 'complex', 2304: 'RGB' };
const MOST_VOXELS = 30_000_000; // a BraTS scan has 9 million
const LARGEST_OFFSET = 2 ** 24; // bytes before the voxels
const SCALES = [1e-30, 1e30]; // outside them a float32 overflows or vanishes
const SIZES_MM = [1e-4, 1e4];
const LONGEST_QUATERNION = 1 + 1e-5; // squared; rounding makes it longer than 1
// Place in bytes, kind of number and, where there are several, bytes of each; of NIfTI-1 and -2.
export const FIELDS = {
  1: {
    size: 348,
    least: 352,
    magic: [344, 'n+1'],
    magicBytes: 4,
    descrip: 148,
    dim: [40, 'Int16', 2],
    datatype: [70, 'Int16'],
    bitpix: [72, 'Int16'],
    pixdim: [76, 'Float32', 4],
    offset: [108, 'Float32'],
    slope: [112, 'Float32'],
    inter: [116, 'Float32'],
    units: [123, 'Uint8'],
    codes: [252, 'Int16', 2],
    quatern: [256, 'Float32', 4],
    srow: [280, 'Float32', 4],
    axes: 39,
  },
  2: {
    size: 540,
    least: 544,
    magic: [4, 'n+2'],
    magicBytes: 8,
    descrip: 240,
    dim: [16, 'BigInt64', 8],
    datatype: [12, 'Int16'],
    bitpix: [14, 'Int16'],
    pixdim: [104, 'Float64', 8],
    offset: [168, 'BigInt64'],
    slope: [176, 'Float64'],
    inter: [184, 'Float64'],
    units: [500, 'Int32'],
    codes: [344, 'Int32', 4],
    quatern: [352, 'Float64', 8],
    srow: [400, 'Float64', 8],
    axes: 524,
  },
};

// What is wrong with a file, in one sentence that a person can act on.
export class ScanError extends Error {}

const UNITS = { 1: 1000, 3: 0.001 }; // of header codes, in mm; all others count as mm

export const unitOf = ({ unitCode }) => UNITS[unitCode & 7] ?? 1;
export const otherUnits = Object.values(UNITS);

export const check = (isTrue, sentence) => {
  if (!isTrue) throw new ScanError(sentence);
};

// Returns `{version, littleEndian, shape, type, itemBytes, offset, slope, inter, pixdim, codes,
// quatern, srow, unitCode, axesCode, warnings}` of unpacked bytes (Uint8Array).
export function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { version, littleEndian } = tellVersion(view);
  const fields = FIELDS[version];
  const one = ([at, kind]) => Number(view[`get${kind}`](at, littleEndian));
  const many = ([at, kind, width], count) =>
    Array.from({ length: count }, (_, i) => one([at + i * width, kind]));
  checkMagic(bytes, fields);
  const warnings = [];
  const header = {
    version,
    littleEndian,
    warnings,
    ...readType(one(fields.datatype)), // its item is right even where bitpix is not
    shape: checkShape(many(fields.dim, 8)),
    offset: checkOffset(one(fields.offset), fields.least),
    pixdim: many(fields.pixdim, 8),
    codes: many(fields.codes, 2),
    quatern: many(fields.quatern, 6),
    srow: many(fields.srow, 12),
    axesCode: bytes[fields.axes],
    unitCode: one(fields.units),
  };
  const voxels = header.shape[0] * header.shape[1] * header.shape[2];
  check(
    bytes.length >= header.offset + voxels * header.itemBytes,
    'the file ends before the last voxel that its header announces; copy it again.',
  );
  checkVoxelSizes(header);
  shortenQuaternion(header);
  return { ...header, ...readScaling(one(fields.slope), one(fields.inter), warnings) };
}

function tellVersion(view) {
  for (const version of [1, 2]) {
    for (const littleEndian of [true, false]) {
      const { size } = FIELDS[version];
      if (view.byteLength >= size && view.getInt32(0, littleEndian) === size) {
        return { version, littleEndian };
      }
    }
  }
  throw new ScanError('this is no NIfTI file; give a .nii or .nii.gz file with one scan.');
}

function checkMagic(bytes, { magic: [at, expected] }) {
  const stored = String.fromCharCode(...bytes.subarray(at, at + 3));
  check(!stored.startsWith('ni'), 'the voxels are in a separate .img file; save as one file.');
  check(stored === expected, 'this is no NIfTI file: its magic word is another one.');
}

function checkShape(dim) {
  check(dim[0] >= 1 && dim[0] <= 7, `the number of axes must be 1 to 7, got ${dim[0]}.`);
  const shape = dim.slice(1, dim[0] + 1);
  check(
    shape.length >= 3 && Math.min(...shape.slice(0, 3)) >= 1,
    `a scan has three axes with at least one voxel each, got ${shape.join(' x ')}.`,
  );
  check(
    shape.slice(3).every((count) => count <= 1),
    `this page takes one 3-D scan, got ${shape.slice(3).join(' x ')} volumes; ` +
      'save one of them as a file of its own.',
  );
  const voxels = shape[0] * shape[1] * shape[2];
  check(
    voxels <= MOST_VOXELS,
    `a scan may have ${MOST_VOXELS / 1e6} million voxels here, got ` +
      `${Math.round(voxels / 1e6)} million; use the command line.`,
  );
  return shape.slice(0, 3);
}

function readType(code) {
  const type = NUMBER_TYPES[code];
  check(
    type,
    `voxels must be real numbers, got ${OTHER_TYPES[code] ?? `datatype ${code}`}; save ` +
      'the scan in grey values.',
  );
  return { type, itemBytes: Number(type.match(/\d+/)[0]) / 8 };
}

function checkOffset(offset, least) {
  if (offset === 0) return least; // some programs mean "right after the header"
  check(
    Number.isInteger(offset) && offset >= least && offset <= LARGEST_OFFSET,
    `the voxels must start at a whole byte from ${least} to ${LARGEST_OFFSET}, got ${offset}.`,
  );
  return offset;
}

function readScaling(slope, inter, warnings) {
  if (slope === 0) return { slope: 1, inter: 0 }; // the standard's way to say "not scaled"
  if (Number.isNaN(slope)) {
    warnings.push('scl_slope is NaN: the stored values are taken unscaled.');
    return { slope: 1, inter: 0 };
  }
  const size = Math.abs(slope);
  check(
    size >= SCALES[0] && size <= SCALES[1] && Number.isFinite(inter),
    `scaling must give finite numbers, got slope ${slope} and intercept ${inter}; save the scan ` +
      'with slope 1.',
  );
  return { slope, inter };
}

function checkVoxelSizes(header) {
  const sizes = header.pixdim.slice(1, 4);
  check(
    sizes.every((size) => Number.isFinite(size) && size !== 0),
    `voxel sizes must be above 0, got ${sizes.join(', ')}; write the true sizes into the header.`,
  );
  const inMm = sizes.map((size) => Math.abs(size) * unitOf(header));
  const areSizes = (values) =>
    values.every((size) => Math.abs(size) >= SIZES_MM[0] && Math.abs(size) <= SIZES_MM[1]);
  check(
    areSizes(inMm) || areSizes(sizes),
    `voxels must measure ${SIZES_MM.join(' to ')} mm, got ` +
      `${inMm.join(', ')} mm; write the true sizes and unit into the header.`,
  );
  if (sizes.some((size) => size < 0)) {
    header.warnings.push(`voxel sizes below 0, ${sizes.join(', ')}, are taken as positive.`);
    header.pixdim.splice(1, 3, ...sizes.map(Math.abs));
  }
  header.codes = header.codes.map((code) => (code >= 0 && code <= 5 ? code : 0));
}

// Puts right a quaternion that rounding made longer than that of any rotation.
function shortenQuaternion(header) {
  const parts = header.quatern.slice(0, 3),
    length = parts.reduce((sum, part) => sum + part * part, 0);
  if (length > 1 && length <= LONGEST_QUATERNION) {
    header.quatern.splice(0, 3, ...parts.map((part) => part / Math.sqrt(length)));
  }
}
