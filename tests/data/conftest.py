"""Data sets on disk, as `tfds build` would leave them."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def encoded(pixels, file_format):
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def write(folder, splits, name="tiny", image=None, label=None, file_format="array_record"):
    """Writes a prepared TFDS set, {split: (images, labels)}, as `tfds build` would.

    An image is an array, which is stored as PNG, or the bytes of a file.
    """
    home = folder / name / "1.0.0"
    home.mkdir(parents=True)
    features = {
        "image": image or tfds.features.Image(shape=(None, None, 3)),
        "label": label or tfds.features.ClassLabel(num_classes=3),
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(home), module_name=name
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    info.set_file_format(file_format)
    infos = []
    for split, (images, labels) in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=home, dataset_name=name, split=split, filetype_suffix=file_format
        )
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for pixels, number in zip(images, labels, strict=True):
            stored = pixels if isinstance(pixels, bytes) else encoded(pixels, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(stored)
            example.features.feature["label"].int64_list.value.append(number)
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(images)], num_bytes=1, filename_template=template)
        )
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(home)
    return folder


@pytest.fixture(scope="session")
def write_tfds():
    return write


@pytest.fixture(scope="session")
def photos():
    """Images of twenty different sizes, as JPEG and PNG files; each a ramp in two colours, and its number in blue."""

    def photo(number):
        height, width = 9 + 7 * number % 23, 8 + 5 * number % 29
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([255 * rows // height, 255 * columns // width, np.full_like(rows, 10 * number)], axis=-1)
        return encoded(pixels.astype(np.uint8), "JPEG" if number % 3 else "PNG")

    return [photo(number) for number in range(20)]
