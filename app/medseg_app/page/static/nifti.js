// Reads the plain NIfTI files that our server writes for looking at: enough for slices without WebGL.

const TYPES = {
  2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array,
  256: Int8Array, 512: Uint16Array, 768: Uint32Array,
};

export async function readNifti(address) {
  const buffer = await (await fetch(address)).arrayBuffer();
  const view = new DataView(buffer);
  if (view.getInt32(0, true) !== 348) throw new Error("not a little-endian NIfTI-1 file");
  const shape = [1, 2, 3].map((i) => view.getInt16(40 + 2 * i, true));
  const spacing = [1, 2, 3].map((i) => view.getFloat32(76 + 4 * i, true));
  const rows = [0, 1, 2].map((r) => [0, 1, 2].map((c) => view.getFloat32(280 + 16 * r + 4 * c, true)));
  const Kind = TYPES[view.getInt16(70, true)];
  const voxels = new Kind(buffer, view.getFloat32(108, true), shape[0] * shape[1] * shape[2]);
  return { shape, spacing, voxels, slope: view.getFloat32(112, true) || 1, shift: view.getFloat32(116, true), ...axes(rows) };
}

/** Per world axis, the array axis that lies closest to it and whether it runs the other way. */
function axes(rows) {
  const order = [], flipped = [];
  for (let world = 0; world < 3; world++) {
    const free = [0, 1, 2].filter((axis) => !order.includes(axis));
    const best = free.reduce((a, b) => (share(rows, world, b) > share(rows, world, a) ? b : a));
    order.push(best);
    flipped.push(rows[world][best] < 0);
  }
  return { order, flipped };
}

function share(rows, world, axis) {
  return Math.abs(rows[world][axis]) / Math.hypot(rows[0][axis], rows[1][axis], rows[2][axis]);
}

/** A function from (right, anterior, superior) indices to the value there. */
export function sampler(volume) {
  const { shape, order, flipped, voxels } = volume;
  const steps = [1, shape[0], shape[0] * shape[1]];
  return (...at) => {
    let index = 0;
    for (let world = 0; world < 3; world++) {
      const axis = order[world];
      index += steps[axis] * (flipped[world] ? shape[axis] - 1 - at[world] : at[world]);
    }
    return voxels[index] * volume.slope + volume.shift;
  };
}
