"""The text of `load_encoder.py`, the script beside an exported encoder.

It imports nothing of Eagleray. How image files are read is the text of `data/reading.py` itself.
"""

import ast
import inspect
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from eagleray.augment.copies import mean_over_copies
from eagleray.data import reading
from eagleray.runs.export.encoder import Build

HEAD = '''\
"""Load the encoder in the folder of this file.

    python load_encoder.py IMAGE ...     # prints the features of images, a line each

    encoder = load()
    features = encoder(read(["photo.jpg", ...]))

It needs {needs}; Pillow too, to read image files. Written by Eagleray {version}.
"""

import hashlib
import {imports}
from pathlib import Path
from typing import TYPE_CHECKING

{libraries}

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SIZE = {image_size}  # side of the images that the network sees
STORED_SIZE = {stored_size}  # shorter side that larger images are reduced to first
MEAN = {mean}  # of each channel, images scaled to 0..1
STD = {std}
MIRRORED = {mirrored}  # features are the mean over an image and its mirror image,
SHIFT = {shift}  # and over copies of them moved by that many pixels in four directions
DIGESTS = {digests}  # SHA-256
BATCH = 64  # images that are encoded at a time
FOLDER = Path(__file__).resolve().parent
'''

TORCH = '''
def prepare(images):
    """Prepare Pillow images as in training: float [N, C, S, S]."""
    stored = [stored_image(image, STORED_SIZE, len(MEAN)) for image in images]
    channels = [channel for image in stored for channel in evaluated_channels(image, IMAGE_SIZE)]
    pixels = torch.stack([torch.frombuffer(bytearray(each.tobytes()), dtype=torch.float32) for each in channels])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (pixels.view(-1, len(MEAN), IMAGE_SIZE, IMAGE_SIZE) / 255 - mean) / std


@torch.no_grad()
def encode(encoder, paths):
    """Return the features of image files: [N, dim]."""
    return torch.cat([encoder(read(paths[start : start + BATCH])) for start in range(0, len(paths), BATCH)])
'''

NUMPY = '''
def prepare(images):
    """Prepare Pillow images as in training: float32 [N, C, S, S]."""
    stored = [stored_image(image, STORED_SIZE, len(MEAN)) for image in images]
    channels = [channel for image in stored for channel in evaluated_channels(image, IMAGE_SIZE)]
    pixels = np.stack([np.frombuffer(each.tobytes(), np.float32) for each in channels])
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (MEAN, STD))
    return (pixels.reshape(-1, len(MEAN), IMAGE_SIZE, IMAGE_SIZE) / 255 - mean) / std


def encode(encoder, paths):
    """Return the features of image files: [N, dim]."""
    return np.concatenate([encoder(read(paths[start : start + BATCH])) for start in range(0, len(paths), BATCH)])
'''

READ = '''
def read(paths):
    """Read and prepare image files: float [N, C, S, S]."""
    from PIL import Image

    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(stored_image(image, STORED_SIZE, len(MEAN)))
    return prepare(images)
'''

CHECKED = '''
def checked(path):
    """Return the path of a file that is as it was written."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != DIGESTS[path.name]:
        raise ValueError(f"{path} is damaged: copy it again, or export it again")
    return path
'''

MAIN = """
if __name__ == "__main__":
    loaded, images = load(), sys.argv[1:]
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        for path, feature in zip(some, encode(loaded, some)):
            print(path, *feature.tolist())
"""

OVER_COPIES = f'''
{inspect.getsource(mean_over_copies)}

class OverCopies(torch.nn.Module):
    """The mean of what an encoder gives for images and for copies of them."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return mean_over_copies(self.encoder, images, MIRRORED, SHIFT)
'''

SAFETENSORS = '''
class Encoder(torch.nn.Module):
    """The trained network, with the statistics of evaluation: prepared images [N, C, S, S] -> features [N, dim]."""

    def __init__(self, weights, buffers):
        super().__init__()
        self.places = {name: name.replace(".", "__") for name in weights}
        for name, value in weights.items():
            if name in buffers:
                self.register_buffer(self.places[name], value)
            else:
                self.register_parameter(self.places[name], torch.nn.Parameter(value))

    def forward(self, images):
        return network({name: getattr(self, place) for name, place in self.places.items()}, images)


def load(folder=FOLDER):
    """Return the encoder: a torch module on the CPU, in eval mode."""
    weights, facts = read_safetensors(checked(Path(folder, "encoder.safetensors")))
    encoder = Encoder(weights, json.loads(facts["buffers"]))
    return (OverCopies(encoder) if MIRRORED or SHIFT else encoder).eval()


def read_safetensors(path):
    """Read a safetensors file: its tensors and its metadata."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    facts = header.pop("__metadata__", {})
    return {name: tensor_of(data, **entry) for name, entry in header.items()}, facts


def tensor_of(data, dtype, shape, data_offsets):
    kind, (start, end) = getattr(torch, DTYPES[dtype]), data_offsets
    if start == end:
        return torch.empty(shape, dtype=kind)
    count = (end - start) // torch.empty(0, dtype=kind).element_size()
    return torch.frombuffer(data, dtype=kind, count=count, offset=start).reshape(shape).clone()


DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}
'''

TORCHSCRIPT = '''
def load(folder=FOLDER):
    """Return the encoder: a TorchScript module on the CPU, in eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch prefers torch.export to TorchScript
        return torch.jit.load(str(checked(Path(folder, "encoder.torchscript.pt"))), map_location="cpu").eval()
'''

ONNX = '''
class Encoder:
    """The trained network: prepared images [N, C, S, S] -> features [N, dim], both NumPy arrays."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())

    def __call__(self, images):
        return self.session.run(["features"], {"images": images})[0]


def load(folder=FOLDER):
    """Return the encoder."""
    return Encoder(checked(Path(folder, "encoder.onnx")))
'''

TIMM = '''
def load(folder=FOLDER):
    """Return the encoder: timm's own module on the CPU, in eval mode."""
    options = json.loads(checked(Path(folder, "config.json")).read_text())["model_args"]
    weights = str(checked(Path(folder, "model.safetensors")))
    encoder = timm.create_model(ARCHITECTURE, checkpoint_path=weights, **options)
    return (OverCopies(encoder) if MIRRORED or SHIFT else encoder).eval()
'''

MODULES = "json\nimport sys\nfrom collections.abc import Callable"
# What each format needs, what its loader imports from the standard library and from elsewhere, and its own text.
PARTS = {
    "safetensors": ("torch alone", MODULES, "import torch", TORCH + OVER_COPIES + SAFETENSORS),
    "torchscript": ("torch alone", "sys\nimport warnings", "import torch", TORCH + TORCHSCRIPT),
    "onnx": ("onnxruntime and NumPy", "sys", "import numpy as np\nimport onnxruntime", NUMPY + ONNX),
    "timm": ("timm and torch", MODULES, "import timm\nimport torch", TORCH + OVER_COPIES + TIMM),
}


def loader(
    form: str, build: Build, folder: Path, version: str, code: str = "", constants: Mapping[str, str] | None = None
) -> str:
    """Write the script that loads an encoder.

    Args:
        form: one of the formats.
        build: the encoder's description.
        folder: with the files of the format alone; the script tells whether they are damaged.
        version: of Eagleray.
        code: that computes the network, if its file holds the weights alone.
        constants: further ones of the script.
    """
    needs, imports, libraries, own = PARTS[form]
    facts = {"image_size": build.side, "stored_size": build.stored_size, "mean": build.mean, "std": build.std}
    facts |= {"mirrored": build.mirrored, "shift": build.shift}
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    head = HEAD.format(needs=needs, imports=imports, libraries=libraries, version=version, digests=digests, **facts)
    head += "".join(f"{name} = {value!r}\n" for name, value in (constants or {}).items())
    if "operator." in code:
        head = head.replace("\nimport sys", "\nimport operator\nimport sys", 1)
    return "\n\n".join(part.strip("\n") + "\n" for part in (head, CHECKED, _reading(), READ, own, code, MAIN) if part)


def _reading() -> str:
    """Return the text of `data/reading.py` below its imports."""
    text = inspect.getsource(reading)
    first = next(node for node in ast.parse(text).body[1:] if not isinstance(node, ast.ImportFrom | ast.If))
    return "\n".join(text.splitlines()[first.lineno - 1 :])
