"""Data sets on disk, as `tfds build` would leave them."""

import io

import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def write(folder, splits, name="tiny", image=None, label=None, file_format="array_record"):
    """Writes a prepared TFDS set, {split: (images, labels)}, as `tfds build` would."""
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
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
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
