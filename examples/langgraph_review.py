"""A LangGraph graph that pauses for a person and continues in another process.

    python langgraph_review.py ask 1 "Who wrote Faust?"       # pauses, and the process ends
    python langgraph_review.py waiting 1                      # what thread 1 waits for
    python langgraph_review.py decide 1 "It was Goethe."      # another process continues
    python langgraph_review.py decide 1 approve

The file ``--database`` stores the paused graph; the model is called once, before the pause.
"""

from __future__ import annotations

import argparse
from typing import Any, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from guard import Action, Guard, Limits, parse_policy

POLICY = """
version: 1
name: review
rules:
  - accept: {below: 0.1}
  - escalate: {to: [log]}
"""


class State(TypedDict, total=False):
    """What the graph knows of one question."""

    question: str
    draft: str
    p_wrong: float
    waits: bool
    answer: str


class Questions:
    """The graph's steps. The model is loaded by the first question, not by a decision."""

    def __init__(self, scorer: str | None = None) -> None:
        self._scorer = scorer

    def ask(self, state: State) -> State:
        """Ask the model; the policy says whether a person has to look at the answer."""
        with Guard.load("smollm2", scorer=self._scorer, policy=parse_policy(POLICY)) as guard:
            outcome = guard.ask(state["question"], limits=Limits(max_tokens=24))
        if outcome.action is Action.ACCEPT:
            return {"answer": outcome.answer or "", "waits": False}
        return {"draft": outcome.attempts[-1].answer or "", "p_wrong": outcome.p_wrong or 1.0, "waits": True}

    def review(self, state: State) -> State:
        """Pause. What the person says, in this process or a later one, is the answer."""
        case = {"question": state["question"], "draft": state["draft"], "p_wrong": state["p_wrong"]}
        decision = interrupt(case)
        return {"answer": state["draft"] if decision == "approve" else str(decision), "waits": False}


def graph(saver: SqliteSaver, scorer: str | None = None) -> Any:
    """Ask, and review where the policy says so."""
    steps = Questions(scorer)
    builder = StateGraph(State)
    builder.add_node("ask", steps.ask)
    builder.add_node("review", steps.review)
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", lambda state: "review" if state["waits"] else END, ["review", END])
    builder.add_edge("review", END)
    return builder.compile(checkpointer=saver)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["ask", "waiting", "decide"])
    parser.add_argument("thread")
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--database", default="reviews.db")
    parser.add_argument("--scorer", help="what guard calibrate wrote; not needed for the embedded model")
    given = parser.parse_args(arguments)
    config = {"configurable": {"thread_id": given.thread}}
    with SqliteSaver.from_conn_string(given.database) as saver:
        questions = graph(saver, given.scorer)
        waits = questions.get_state(config).interrupts
        if given.command == "ask":
            questions.invoke({"question": given.text}, config)
        elif given.command == "decide":
            if not waits:
                parser.exit(1, f"Thread {given.thread} does not wait for a decision.\n")
            if not given.text:
                parser.error("say 'approve', or the right answer")
            questions.invoke(Command(resume=given.text), config)
        state = questions.get_state(config)
        for pause in state.interrupts:
            case = pause.value
            print(f"waiting: {case['question']}\n  the model says, wrong with probability {case['p_wrong']:.2f}:")
            print(f"  {case['draft']}")
        if "answer" in state.values:
            print(f"answer: {state.values['answer']}")


if __name__ == "__main__":
    main()
