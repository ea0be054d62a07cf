from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Call(_message.Message):
    __slots__ = ("step", "forward", "backward", "score", "keep_features", "reserve", "prefill", "decode", "describe", "register", "token_losses", "release", "begin", "end", "lacks")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOSSES_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    step: StepRequest
    forward: ForwardRequest
    backward: BackwardRequest
    score: ScoreRequest
    keep_features: KeepFeaturesRequest
    reserve: ReserveRequest
    prefill: PrefillRequest
    decode: DecodeRequest
    describe: DescribeRequest
    register: RegisterRequest
    token_losses: TokenLossesRequest
    release: ReleaseRequest
    begin: BeginRequest
    end: EndRequest
    lacks: LacksRequest
    def __init__(self, step: _Optional[_Union[StepRequest, _Mapping]] = ..., forward: _Optional[_Union[ForwardRequest, _Mapping]] = ..., backward: _Optional[_Union[BackwardRequest, _Mapping]] = ..., score: _Optional[_Union[ScoreRequest, _Mapping]] = ..., keep_features: _Optional[_Union[KeepFeaturesRequest, _Mapping]] = ..., reserve: _Optional[_Union[ReserveRequest, _Mapping]] = ..., prefill: _Optional[_Union[PrefillRequest, _Mapping]] = ..., decode: _Optional[_Union[DecodeRequest, _Mapping]] = ..., describe: _Optional[_Union[DescribeRequest, _Mapping]] = ..., register: _Optional[_Union[RegisterRequest, _Mapping]] = ..., token_losses: _Optional[_Union[TokenLossesRequest, _Mapping]] = ..., release: _Optional[_Union[ReleaseRequest, _Mapping]] = ..., begin: _Optional[_Union[BeginRequest, _Mapping]] = ..., end: _Optional[_Union[EndRequest, _Mapping]] = ..., lacks: _Optional[_Union[LacksRequest, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("step", "forward", "backward", "score", "reserve", "keep_features", "refused", "busy", "missing", "gone", "session_gone", "prefill", "decode", "describe", "register", "token_losses", "release", "begin", "end", "lacks")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FEATURES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    SESSION_GONE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOSSES_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    step: StepReply
    forward: ForwardReply
    backward: BackwardReply
    score: ScoreReply
    reserve: ReserveReply
    keep_features: KeepFeaturesReply
    refused: str
    busy: str
    missing: Missing
    gone: bool
    session_gone: bool
    prefill: GeneratedReply
    decode: GeneratedReply
    describe: Description
    register: Description
    token_losses: TokenLossesReply
    release: ReleaseReply
    begin: BeginReply
    end: EndReply
    lacks: Missing
    def __init__(self, step: _Optional[_Union[StepReply, _Mapping]] = ..., forward: _Optional[_Union[ForwardReply, _Mapping]] = ..., backward: _Optional[_Union[BackwardReply, _Mapping]] = ..., score: _Optional[_Union[ScoreReply, _Mapping]] = ..., reserve: _Optional[_Union[ReserveReply, _Mapping]] = ..., keep_features: _Optional[_Union[KeepFeaturesReply, _Mapping]] = ..., refused: _Optional[str] = ..., busy: _Optional[str] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., gone: bool = ..., session_gone: bool = ..., prefill: _Optional[_Union[GeneratedReply, _Mapping]] = ..., decode: _Optional[_Union[GeneratedReply, _Mapping]] = ..., describe: _Optional[_Union[Description, _Mapping]] = ..., register: _Optional[_Union[Description, _Mapping]] = ..., token_losses: _Optional[_Union[TokenLossesReply, _Mapping]] = ..., release: _Optional[_Union[ReleaseReply, _Mapping]] = ..., begin: _Optional[_Union[BeginReply, _Mapping]] = ..., end: _Optional[_Union[EndReply, _Mapping]] = ..., lacks: _Optional[_Union[Missing, _Mapping]] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("protocol", "run", "node", "round")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: int
    node: int
    round: int
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[int] = ..., node: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "scales", "places", "outliers")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    OUTLIERS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    scales: bytes
    places: bytes
    outliers: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., scales: _Optional[bytes] = ..., places: _Optional[bytes] = ..., outliers: _Optional[bytes] = ...) -> None: ...

class Factors(_message.Message):
    __slots__ = ("site", "z", "a", "scale", "b", "b_key")
    SITE_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    A_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    B_KEY_FIELD_NUMBER: _ClassVar[int]
    site: str
    z: Tensor
    a: bytes
    scale: float
    b: Tensor
    b_key: bytes
    def __init__(self, site: _Optional[str] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., a: _Optional[bytes] = ..., scale: _Optional[float] = ..., b: _Optional[_Union[Tensor, _Mapping]] = ..., b_key: _Optional[bytes] = ...) -> None: ...

class LowRank(_message.Message):
    __slots__ = ("token_ids", "run_lengths", "run_sites", "features", "factors")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RUN_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    RUN_SITES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    run_lengths: _containers.RepeatedScalarFieldContainer[int]
    run_sites: _containers.RepeatedScalarFieldContainer[int]
    features: _containers.RepeatedScalarFieldContainer[bytes]
    factors: _containers.RepeatedCompositeFieldContainer[Factors]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., run_lengths: _Optional[_Iterable[int]] = ..., run_sites: _Optional[_Iterable[int]] = ..., features: _Optional[_Iterable[bytes]] = ..., factors: _Optional[_Iterable[_Union[Factors, _Mapping]]] = ...) -> None: ...

class Inputs(_message.Message):
    __slots__ = ("embeddings", "low_rank", "lengths", "position_ids", "token_type_ids", "token_ids", "deep", "turn")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    LOW_RANK_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    POSITION_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TYPE_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DEEP_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    embeddings: Tensor
    low_rank: LowRank
    lengths: _containers.RepeatedScalarFieldContainer[int]
    position_ids: _containers.RepeatedScalarFieldContainer[int]
    token_type_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    deep: Tensor
    turn: Turn
    def __init__(self, embeddings: _Optional[_Union[Tensor, _Mapping]] = ..., low_rank: _Optional[_Union[LowRank, _Mapping]] = ..., lengths: _Optional[_Iterable[int]] = ..., position_ids: _Optional[_Iterable[int]] = ..., token_type_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., deep: _Optional[_Union[Tensor, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("session", "number", "factor", "measures", "stands")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    STANDS_FIELD_NUMBER: _ClassVar[int]
    session: int
    number: int
    factor: float
    measures: bool
    stands: bool
    def __init__(self, session: _Optional[int] = ..., number: _Optional[int] = ..., factor: _Optional[float] = ..., measures: bool = ..., stands: bool = ...) -> None: ...

class BeginRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class BeginReply(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: int
    def __init__(self, session: _Optional[int] = ...) -> None: ...

class EndRequest(_message.Message):
    __slots__ = ("header", "turn")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    header: Header
    turn: Turn
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class EndReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("protocol", "model", "fingerprint", "hidden_size", "vocabulary", "dtype", "max_tokens", "hub_id", "parameters", "revision", "max_message", "deep_size", "lora", "connector")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HUB_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    CONNECTOR_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    model: str
    fingerprint: str
    hidden_size: int
    vocabulary: int
    dtype: str
    max_tokens: int
    hub_id: str
    parameters: int
    revision: str
    max_message: int
    deep_size: int
    lora: str
    connector: str
    def __init__(self, protocol: _Optional[int] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., hidden_size: _Optional[int] = ..., vocabulary: _Optional[int] = ..., dtype: _Optional[str] = ..., max_tokens: _Optional[int] = ..., hub_id: _Optional[str] = ..., parameters: _Optional[int] = ..., revision: _Optional[str] = ..., max_message: _Optional[int] = ..., deep_size: _Optional[int] = ..., lora: _Optional[str] = ..., connector: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("header", "model", "fingerprint", "hidden_size", "hub_id", "revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    HUB_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    header: Header
    model: str
    fingerprint: str
    hidden_size: int
    hub_id: str
    revision: str
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., hidden_size: _Optional[int] = ..., hub_id: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("header", "inputs", "label_positions", "labels", "dtype")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LABEL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    inputs: Inputs
    label_positions: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., label_positions: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ...) -> None: ...

class StepReply(_message.Message):
    __slots__ = ("loss", "gradients")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    gradients: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, loss: _Optional[float] = ..., gradients: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("header", "inputs", "positions")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    inputs: Inputs
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("graph", "logits")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    graph: int
    logits: Tensor
    def __init__(self, graph: _Optional[int] = ..., logits: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class BackwardRequest(_message.Message):
    __slots__ = ("header", "graph", "gradient", "dtype")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    graph: int
    gradient: Tensor
    dtype: str
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., graph: _Optional[int] = ..., gradient: _Optional[_Union[Tensor, _Mapping]] = ..., dtype: _Optional[str] = ...) -> None: ...

class BackwardReply(_message.Message):
    __slots__ = ("gradients",)
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    gradients: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, gradients: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("header", "inputs", "positions", "candidates")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    header: Header
    inputs: Inputs
    positions: _containers.RepeatedScalarFieldContainer[int]
    candidates: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., positions: _Optional[_Iterable[int]] = ..., candidates: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("log_probabilities",)
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    log_probabilities: Tensor
    def __init__(self, log_probabilities: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class TokenLossesRequest(_message.Message):
    __slots__ = ("header", "inputs", "positions", "tokens")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    inputs: Inputs
    positions: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., positions: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenLossesReply(_message.Message):
    __slots__ = ("losses",)
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    losses: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, losses: _Optional[_Iterable[float]] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("header", "tokens")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    tokens: int
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., tokens: _Optional[int] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("cache", "most", "ahead")
    CACHE_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    cache: int
    most: int
    ahead: int
    def __init__(self, cache: _Optional[int] = ..., most: _Optional[int] = ..., ahead: _Optional[int] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("header", "inputs", "cache")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    inputs: Inputs
    cache: int
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., cache: _Optional[int] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("header", "cache", "sequences", "tokens", "rows", "position_ids")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITION_IDS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    cache: int
    sequences: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    rows: Tensor
    position_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., cache: _Optional[int] = ..., sequences: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ..., position_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GeneratedReply(_message.Message):
    __slots__ = ("cache", "tokens")
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    cache: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, cache: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("header", "cache")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    cache: int
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., cache: _Optional[int] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FeatureEntry(_message.Message):
    __slots__ = ("key", "rows", "read", "site")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    rows: Tensor
    read: Tensor
    site: str
    def __init__(self, key: _Optional[bytes] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ..., read: _Optional[_Union[Tensor, _Mapping]] = ..., site: _Optional[str] = ...) -> None: ...

class KeepFeaturesRequest(_message.Message):
    __slots__ = ("header", "features")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    header: Header
    features: _containers.RepeatedCompositeFieldContainer[FeatureEntry]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., features: _Optional[_Iterable[_Union[FeatureEntry, _Mapping]]] = ...) -> None: ...

class KeepFeaturesReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LacksRequest(_message.Message):
    __slots__ = ("header", "keys")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...
