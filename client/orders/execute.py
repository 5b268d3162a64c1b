"""Carrying out an order: everything is checked, then trained or scored.

The errors that come out of here may name the site's files; they are for its own log.
"""
# pyright: reportUnknownMemberType=false

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from client.data.task import Example, images_of
from client.inference.image_prototype import prototype_of_images
from client.methods.interface import Assignment, method_code
from client.model.backbone import Prediction
from client.model.device import configure_torch
from client.orders.class_metrics import (
    AUC_OF_A_CONSTANT,
    answers_of_base,
    asked_among,
    class_metrics,
)
from client.orders.kept_answers import remove_answers
from client.orders.leaving_figures import leaving_figures
from client.orders.option_metrics import option_metrics, with_options
from client.orders.resolve import ResolvedOrder, resolve
from client.orders.routed_answers import answer_routed
from client.orders.session import SiteSession
from client.site import blob_store, own_b
from client.site.policy import fewest_images
from client.training.checkpoint import Checkpoint
from client.training.loop import Progress
from common.adapter import Adapter, AdapterSource, to_bytes
from common.errors import SiteFailed
from common.exchange import Answer, Order, Scores, Update
from common.metrics import (
    AUC,
    CLASS_METRICS,
    RELEASED,
    ZERO_SHOT,
    AnsweredQuestion,
    majority_answers,
    task_metrics,
)
from common.partial_adapter import AdapterPart, is_part, joined, multiplied, part_of, three_factors
from common.process.progress import OnEvent
from common.router.image_prototype import from_bytes as prototype_from
from common.router.image_prototype import to_bytes as prototype_bytes
from common.rules.interface import BeforeSending, Factor
from common.work import Work


def execute(
    order: Order, session: SiteSession, on_event: OnEvent, checkpoint: Checkpoint | None
) -> Answer:
    """Do what the order asks for: an update, or scores. Asked twice, the answer is the same.

    What it names must be in the site's store. With a checkpoint a training that was cut
    off continues from there, to the same adapter.

    Raises:
        OrderRefused: it is not within the site's policy, or another base model than the plan's.
        SiteFailed: a blob that is not in the store, a device that is missing, a full disk,
            a loss that is not finite.
        PlanError, ModelError, BankError, DataError: what the order names, or what the site
            has, can't be used.
        JobCancelled: the order is no longer wanted, as it turned out at a checkpoint.
    """
    started = time.monotonic()
    resolved = resolve(order, session)
    configure_torch(session.site)
    try:
        if order.work is Work.EVALUATE:
            return scores_of(resolved, assignment_of(resolved, session))
        if order.work is Work.TRAIN_ALONE:
            return train_alone(resolved, session, on_event)
        update = train(resolved, session, on_event, checkpoint)
    except torch.OutOfMemoryError:
        raise SiteFailed(
            f"site {session.site.name}: stage {resolved.stage.name!r} needs more GPU memory "
            "than there is; a smaller training.micro_batch or evaluation.batch_size, or "
            "training.gradient_checkpointing, may help"
        ) from None
    return replace(update, seconds=time.monotonic() - started, peak_memory=_peak_memory())


def assignment_of(
    resolved: ResolvedOrder, session: SiteSession, checkpoint: Checkpoint | None = None
) -> Assignment:
    """Return what the order's method works on, the base model loaded and the adapters opened.

    Raises:
        SiteFailed, BankError, ModelError: something is not there or can't be used.
    """
    order, plan = resolved.order, resolved.plan
    ordered, trains = session.adapters(order), order.work is Work.TRAIN
    begin = ordered.adapter if trains else None
    if begin is not None and plan.rule.trained_factors(order.round) is Factor.CORE:
        begin = three_factors(ordered.base or begin, begin if ordered.base else None)
    return Assignment(
        plan=plan,
        stage=order.stage,
        round=order.round,
        site=resolved.site.name,
        backbone=session.backbone(plan),
        bank=ordered.releases,
        active=order.active,
        candidate=None if trains else ordered.adapter,
        round_start=begin,
        checkpoint=checkpoint,
        other_tasks=resolved.other_tasks,
        own_b=own_b_of(resolved) if order.work is Work.EVALUATE else {},
        fewest_images=resolved.site.policy.images,
        reference=resolved.site.reference,
    )


def own_b_of(resolved: ResolvedOrder) -> dict[int, AdapterSource]:
    """Return the site's own B's by stage, where the plan's rule has it answer with them."""
    order, plan, store = resolved.order, resolved.plan, resolved.site.store
    if not plan.rule.own_b:
        return {}
    stages = {order.stage, *(ref.stage for ref in order.releases)}
    found = {stage: own_b.latest(store, order.plan, stage) for stage in sorted(stages)}
    return {stage: part for stage, part in found.items() if part is not None}


def train(
    resolved: ResolvedOrder,
    session: SiteSession,
    on_event: OnEvent,
    checkpoint: Checkpoint | None,
) -> Update:
    """Train a round, in this process or in the site's workers; with the prototype it owes."""
    if resolved.site.workers > 1:
        from client.orders.workers import train_with_workers  # DeepSpeed, which few sites have

        session.free_memory()
        update = train_with_workers(resolved, on_event, checkpoint)
    else:
        assignment = assignment_of(resolved, session, checkpoint)
        update = train_here(resolved, assignment, on_event)
    return replace(update, prototype=image_prototype(resolved, session))


def train_here(resolved: ResolvedOrder, assignment: Assignment, on_event: OnEvent) -> Update:
    """Train the order's round in this process."""
    plan, order, examples = resolved.plan, resolved.order, resolved.data.train
    rule, method = plan.rule, method_code(plan.method)
    adapter = round_start(resolved, assignment)

    def on_progress(progress: Progress) -> None:
        on_event(asdict(progress))

    improved, result = method.train(assignment, adapter, examples, on_progress)
    if rule.before_sending is not None:
        improved = prepared(improved, adapter, rule.before_sending)
    if rule.own_b:
        kept = part_of(improved, AdapterPart.B)
        own_b.save(resolved.site.store, order.plan, order.stage, order.round, kept)
    sent = part_of(improved, rule.part(order.round, resolved.stage.rounds))
    return Update(
        order=order.digest,
        site=resolved.site.name,
        examples=len(examples),
        steps=result.steps,
        loss=result.loss,
        regularizer=result.regularizer,
        adapter=to_bytes(sent, plan.wire),
    )


def round_start(resolved: ResolvedOrder, assignment: Assignment) -> Adapter:
    """Return what the round begins with; an A without its B gets the site's own.

    A site that has no B of its own yet takes that of the stage's start.
    """
    order, begin = resolved.order, assignment.round_start
    if begin is not None and not is_part(begin, AdapterPart.A):
        return begin.loaded()
    store = resolved.site.store
    own = None if begin is None else own_b.latest(store, order.plan, order.stage, order.round)
    if begin is not None and own is not None:
        return joined(begin, own)
    start = method_code(resolved.plan.method).start(assignment, resolved.data.train)
    return start if begin is None else joined(begin, start)


def prepared(trained: Adapter, start: Adapter, before_sending: BeforeSending) -> Adapter:
    """Return the trained adapter as the rule has it sent, layer by layer."""
    pairs = {name: before_sending(pair, start.pairs[name]) for name, pair in trained.pairs.items()}
    return replace(trained, pairs=pairs)


def image_prototype(resolved: ResolvedOrder, session: SiteSession) -> bytes | None:
    """Return the prototype of the site's pictures, if the plan wants one and they are enough."""
    plan, order = resolved.plan, resolved.order
    fewest = fewest_images(plan, order.stage, order.round, resolved.site)
    if fewest is None:
        return None
    images = images_of(resolved.data.train)
    statistics = plan.routing is not None and plan.routing.statistics
    found = prototype_of_images(session.backbone(plan), images, fewest, statistics=statistics)
    return None if found is None else prototype_bytes(found)


def train_alone(resolved: ResolvedOrder, session: SiteSession, on_event: OnEvent) -> Scores:
    """Train all rounds of the stage at this site alone, from the base model, and score the result.

    The adapter is only ever in this process's memory. Cut off, the training begins again.
    """
    plan, examples, method = resolved.plan, resolved.data.train, method_code(resolved.plan.method)
    base, adapter = assignment_of(resolved, session), None

    def on_progress(progress: Progress) -> None:
        on_event(asdict(progress))

    for number in range(1, resolved.stage.rounds + 1):
        assignment = replace(base, round=number, round_start=adapter)
        begin = method.start(assignment, examples) if adapter is None else adapter
        if plan.rule.trained_factors(number) is Factor.CORE and begin.pairs:
            begin = begin if is_part(begin, AdapterPart.CORE) else three_factors(begin, None)
        adapter, _ = method.train(assignment, begin, examples, on_progress)
        if plan.rule.before_sending is not None:
            adapter = prepared(adapter, begin, plan.rule.before_sending)
    if adapter is not None and is_part(adapter, AdapterPart.CORE):
        adapter = multiplied(adapter)
    return scores_of(resolved, replace(base, candidate=adapter, other_tasks={}))


def scores_of(resolved: ResolvedOrder, assignment: Assignment) -> Scores:
    """Score a model on the site's test questions; figures of few questions are left out."""
    data, fewest = resolved.data, resolved.site.policy.test_questions
    asked = asked_questions(resolved, assignment)
    metrics = leaving_figures(answer_test(resolved, assignment), asked, fewest)
    majority = majority_answers([(example.question, example.answer) for example in data.train])
    usual = [Prediction(majority(question.question)) for question in data.test]
    of_majority = task_metrics(_answered(data.test, usual))
    if AUC in metrics:
        of_majority[AUC] = AUC_OF_A_CONSTANT
    return Scores(
        order=resolved.order.digest,
        site=resolved.site.name,
        questions=len(data.test),
        metrics=metrics,
        majority=leaving_figures(of_majority, asked, fewest),
    )


def asked_questions(resolved: ResolvedOrder, assignment: Assignment) -> Sequence[Example]:
    """Return the site's test questions with the options among which they are asked."""
    if assignment.asked_classes:
        return asked_among(resolved.data.test, assignment.asked_classes)
    options = resolved.plan.evaluation.options
    return with_options(resolved.data) if options else resolved.data.test


def answer_test(resolved: ResolvedOrder, assignment: Assignment) -> dict[str, float]:
    """Answer the site's test questions, and return the measures.

    A simulated site keeps all answers in its store. One with a coordinator keeps none, since they
    are patient data; with `keep_answers` the last ones of each task, for its own page of them.
    """
    order, plan, data = resolved.order, resolved.plan, resolved.data
    shares, classes = dict[str, float](), assignment.asked_classes
    questions = asked_questions(resolved, assignment)
    answer = method_code(plan.method).answer
    if order.prototypes:
        prototypes = {
            ref.stage: prototype_from(
                blob_store.get(resolved.site.store, ref.sha256),
                f"the prototype of release {ref.stage + 1}",
            )
            for ref in order.prototypes
        }
        predictions, shares = answer_routed(assignment, prototypes, questions, answer)
    else:
        predictions = answer(assignment, questions)
        if assignment.answers_with_own_b:
            everyones = answer(replace(assignment, own_b={}), questions)
            found = task_metrics(_answered(data.test, everyones))
            shares = {f"{RELEASED}{name}": value for name, value in found.items()}
    if plan.evaluation.options:
        shares |= option_metrics(questions, predictions)
    if classes:
        shares |= class_metrics(questions, predictions)
        # With the stage's own classes alone the base model was scored before the stage.
        if plan.evaluation.zero_shot and len(classes) > len(plan.asked_classes(order.stage, 0)):
            shares |= _of_base(assignment, questions)
    if resolved.site.federation is None or resolved.site.keep_answers:
        name = f"{resolved.stage.name}-{order.digest[:12]}.jsonl"
        file = resolved.site.store / "answers" / name
        blob_store.write_atomically(file, _answer_file(data.test, predictions))
        if resolved.site.federation is not None:
            remove_answers(resolved.site, resolved.stage.name, but=file)
    return {**task_metrics(_answered(data.test, predictions)), **shares}


def _of_base(assignment: Assignment, questions: Sequence[Example]) -> dict[str, float]:
    """Return the base model's metrics of a task with classes, under names of their own."""
    predictions = answers_of_base(assignment, questions)
    found = {
        **task_metrics(_answered(questions, predictions)),
        **class_metrics(questions, predictions),
    }
    return {f"{ZERO_SHOT}{name}": found[name] for name in CLASS_METRICS if name in found}


def _peak_memory() -> int:
    """Return the largest resident memory of this process, or of one it started, in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(process).ru_maxrss for process in who) * 1024


def _answered(
    questions: Sequence[Example], predictions: Sequence[Prediction]
) -> list[AnsweredQuestion]:
    return [
        AnsweredQuestion(question=q.question, answer=said.text, truth=q.answer, kind=q.kind)
        for q, said in zip(questions, predictions, strict=True)
    ]


def _answer_file(questions: Sequence[Example], predictions: Sequence[Prediction]) -> bytes:
    """Return one JSON object a line, under the keys of the paper's answer files."""
    lines: list[str] = []
    for q, said in zip(questions, predictions, strict=True):
        entry: dict[str, object] = {
            "question_id": q.question_id,
            "prompt": q.question,
            "text": said.text,
            "gt": q.answer,
            "answer_type": q.kind,
        }
        if said.class_scores is not None:
            entry["class_scores"] = dict(said.class_scores)
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines).encode()
