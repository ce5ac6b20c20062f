"""The config of a curation: which stages run, in which order, and the settings of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_tools.curation.collect import CollectConfig
from data_tools.curation.decontamination import DecontaminationConfig
from data_tools.curation.difficulty import DifficultyConfig
from data_tools.curation.domains import DomainsConfig
from data_tools.curation.duplicates import DuplicatesConfig
from data_tools.curation.lengths import LengthsConfig
from data_tools.curation.publish import PublishConfig
from data_tools.curation.quality import QualityConfig
from data_tools.curation.selection import SelectionConfig, check_stages
from data_tools.curation.traces import TracesConfig
from data_tools.curation.workers import Executor
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import OutputPath, check_types

StageName = Literal[
    "collect", "duplicates", "decontamination", "traces", "quality", "difficulty", "lengths", "domains", "selection"
]


@dataclass(frozen=True)
class CurationConfig:
    """From a pool of questions to a training set."""

    output: OutputPath
    """Folder for the training set, the report and the rejected rows."""
    stages: tuple[StageName, ...]
    """The stages that run, in the order in which they are given: collect first, and any of duplicates, decontamination, traces, quality,
    difficulty, lengths, domains and selection."""
    work: OutputPath = ""
    """Folder for the results of the stages, by which a stage is not run again. Several configs may share it. Default: OUTPUT/work."""
    executor: Executor = "processes"
    """What runs the stages without a model: processes of this machine, or `ray`, a cluster of machines that share the folders."""
    num_processes: int | None = None
    """Number of processes on this machine. Default: one per core."""
    explain: str = ""
    """Instead of running, tell the fate of a row: give its id (16 hex digits), or FILE:LINE."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    lengths: LengthsConfig = field(default_factory=LengthsConfig)
    domains: DomainsConfig = field(default_factory=DomainsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        check_types(self)
        if self.stages[:1] != ("collect",):
            raise UserError("stages must begin with collect")
        if len(set(self.stages)) < len(self.stages):
            raise UserError(f"stages are {', '.join(self.stages)}: one is there twice")
        if "selection" in self.stages:
            check_stages(self.selection, self.stages[: self.stages.index("selection")])
        if self.num_processes is not None and self.num_processes < 1:
            raise UserError(f"num_processes is {self.num_processes}: it must be at least 1")
