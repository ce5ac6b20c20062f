"""Fine-tuning of the quickstart's tiny base model on traces in which it checks its own steps: the recipe of `s1_32b` for a laptop.

Run by `launch/quickstart.sh` on two shared cores of an AMD CPU in 251 s. With the largest thinking budget the model then solved 96.7% of
120 held-out problems (95% interval: 91.7% to 98.7%).

    python launch/train.py quickstart --data.source out/curated/train.jsonl --output out/model
"""

from s1jax.data.examples import DataConfig
from s1jax.runtime.sharding import MeshConfig
from s1jax.train.config import TrainConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.step import StepConfig

CONFIG = TrainConfig(
    model="data_tools/quickstart/tiny_base",
    output="out/model",
    data=DataConfig(source="out/curated/train.jsonl", max_length=1024, batch_size=8, num_epochs=2, pad_multiple=32),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    mesh=MeshConfig(data=-1, fsdp=1),
    dtype="float32",
    export_dtype="float32",
    step=StepConfig(remat="none"),
    save_every=100,
)
