"""Headers decoded here say what nibabel says of them; reading them loads neither nibabel nor pydicom."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage

from medseg.io import inspect, read


@pytest.mark.parametrize("header_class", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endianness", "<>")
def test_nifti_fields(header_class: type, endianness: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for code in (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280):
        fields = header_class(endianness=endianness)
        quaternion = rng.normal(size=4)
        quaternion *= np.sign(quaternion[0]) / np.linalg.norm(quaternion)
        for axis, part in zip("bcd", quaternion[1:], strict=True):
            fields[f"quatern_{axis}"] = part
        for axis in "xyz":
            fields[f"srow_{axis}"] = rng.normal(size=4)
            fields[f"qoffset_{axis}"] = rng.normal()
        fields["pixdim"][:4] = rng.choice([-1, 1]), *rng.uniform(0.3, 4, 3)
        fields["qform_code"], fields["sform_code"], fields["xyzt_units"] = 1, 0, 2
        fields["datatype"], fields["dim"][:4] = code, (3, 2, 3, 4)
        fields["vox_offset"], fields["magic"] = len(fields.binaryblock) + 4, fields["magic"]
        path = tmp_path / "a.nii"
        path.write_bytes(fields.binaryblock + bytes(4) + bytes(range(1, 25)) * 8)
        found = inspect(path)
        np.testing.assert_allclose(found.affine, fields.get_qform(), atol=1e-5)
        assert found.dtype == fields.get_data_dtype().name
        assert found.byte_order == ("big" if endianness == ">" else "little")
        assert (found.qform_code, found.sform_code, found.shape) == (1, 0, (2, 3, 4))


def test_mgh_geometry(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for dtype in (np.uint8, np.int16, np.int32, np.float32):
        directions = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        affine = np.eye(4)
        affine[:3] = np.column_stack([directions * rng.uniform(0.4, 3, 3), rng.normal(size=3) * 40])
        values = rng.integers(0, 99, (4, 5, 6)).astype(dtype)
        nib.save(MGHImage(values, affine, MGHHeader()), tmp_path / "a.mgz")
        volume = read(tmp_path / "a.mgz")
        np.testing.assert_allclose(volume.affine, nib.load(tmp_path / "a.mgz").affine, atol=1e-4)
        assert np.array_equal(volume.voxels, values)


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz"])
def test_reading_loads_neither_nibabel_nor_pydicom(ending: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    image_class = nib.Nifti1Image if ending == ".nii.gz" else MGHImage
    nib.save(image_class(values, np.diag([2.0, 2, 2, 1])), tmp_path / f"a{ending}")
    program = (
        "import sys; from medseg.io import inspect, read\n"
        "assert inspect(sys.argv[1]).readable and read(sys.argv[1]).shape == (4, 5, 6)\n"
        "sys.exit(', '.join({'nibabel', 'pydicom', 'SimpleITK', 'highdicom'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / f"a{ending}")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
