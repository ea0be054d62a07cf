import pytest

from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.config import Adapter, Dataset
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf


@pytest.fixture(scope="session")
def questions(encoder: QuestionEncoder, tiny_dataset: Dataset) -> list[Question]:
    return [encoder.encode(s) for s in load_questions(tiny_dataset).train[:12]]


@pytest.fixture
def edge(encoder: QuestionEncoder, edge_half: EdgeHalf) -> NanoEdge:
    adapters = build_adapters(48, Adapter(4, 8.0, 0.0, "image,text"), seed=0)
    return NanoEdge(edge_half, edge_half.token_table(), adapters, encoder)


@pytest.fixture(scope="session")
def llm(llm_half: LLMHalf) -> EmbeddingsExchange:
    return EmbeddingsExchange(FrozenLLM(llm_half))
