"""Ground truth against independent means: rays cast in the simulator, MuJoCo's own kinematics, counted pixels."""

from contextlib import suppress

import mujoco
import numpy as np
import pytest

from envs import se3
from envs.spatial_qa import interaction, perception, planning, prediction
from envs.spatial_qa.draws import Draw, UnclearError
from envs.spatial_qa.interaction import reachable
from envs.spatial_qa.items import Knobs, knobs_at, run_lengths
from envs.spatial_qa.rollouts import Moment, rollout
from envs.spatial_qa.still_life import CAMERA, StillLife, convex_hull, fill_convex, pixel_centres, stack
from envs.tabletop.env import TabletopEnv
from envs.tabletop.expert import DOWN, tool_rotation
from rewards.verifiers import decode_mask

SIDE = 256


def cast(life, point):
    """Geom that a ray through an image point (0..1000) meets first, and where, by MuJoCo's ray casting."""
    camera = life.camera
    slope = (np.array(point) / 1000 - 0.5) * [1, -1] / camera.focal
    ray = camera.rotation @ [*slope, -1.0]
    geom = np.zeros(1, dtype=np.int32)
    distance = mujoco.mj_ray(life.model, life.data, camera.position, ray, None, 1, -1, geom, None)
    return int(geom[0]), camera.position + distance * ray


def draw(seed, **knobs):
    return Draw(np.random.default_rng(seed), Knobs(**knobs), seed, 0)


def questions(generator, number, spy=None, **knobs):
    """Questions of a generator; with `spy`, each with the scenes it looked at."""
    found, seed = [], 0
    while len(found) < number:
        with suppress(UnclearError):
            question = generator(draw(64 * seed, **knobs))
            found.append((question, spy[-1] if spy is not None else None))
        seed += 1
    return found


@pytest.fixture
def scenes(monkeypatch):
    """Every still life that is built, in order."""
    built = []
    original = StillLife.__init__

    def keep(self, *args):
        original(self, *args)
        built.append(self)

    monkeypatch.setattr(StillLife, "__init__", keep)
    return built


def test_segmentation_agrees_with_rays_away_from_edges(still_lifes):
    for life in still_lifes:
        segments = life.segments
        for row in range(8, SIDE, 16):
            for column in range(8, SIDE, 16):
                patch = segments[row - 2 : row + 3, column - 2 : column + 3]
                if (patch == patch[0, 0]).all():
                    geom, _ = cast(life, ((column + 0.5) / SIDE * 1000, (row + 0.5) / SIDE * 1000))
                    assert geom == patch[0, 0]


def test_silhouettes_are_what_the_renderer_draws(still_lifes):
    for life in still_lifes:
        for slot in range(len(life.things)):
            outside = life.mask(slot) & ~life.silhouette(slot)
            assert outside.sum() <= 3


def test_box_is_the_extent_of_the_projected_geometry_of_an_unoccluded_object(still_lifes):
    checked = 0
    for life in still_lifes:
        for slot in range(len(life.things)):
            if (life.silhouette(slot) == life.mask(slot)).all():
                outline = 1000 * life.outline(slot)
                box = [*outline.min(axis=0), *outline.max(axis=0)]
                assert np.abs(np.array(perception.mask_box(life.mask(slot))) - box).max() < 1000 / SIDE + 1
                checked += 1
    assert checked >= 6


def test_projection_is_inverse_to_the_ray_onto_the_table(still_lifes):
    camera = still_lifes[0].camera
    xy = camera.on_plane(pixel_centres(8), 0.74)
    points = np.concatenate([xy, np.full((8, 8, 1), 0.74)], axis=-1)
    seen = np.isfinite(xy).all(axis=-1)
    assert seen.sum() > 32
    np.testing.assert_allclose(camera.project(points)[seen], pixel_centres(8)[seen], atol=1e-9)


def test_simulator_has_the_objects_where_the_truth_says(still_lifes):
    for life in still_lifes:
        for slot, thing in enumerate(life.things):
            np.testing.assert_allclose(life.data.geom_xpos[life.geoms(slot)[0]], thing.position, atol=1e-9)


def test_rays_through_pointed_places_meet_the_named_object(scenes):
    for question, life in questions(perception.point_object, 6, scenes):
        x, y = question.answer["point"]
        mask = decode_mask(question.answer["mask"])
        assert mask[min(y * SIDE // 1000, SIDE - 1), min(x * SIDE // 1000, SIDE - 1)]
        geom, _ = cast(life, (x, y))
        slot = int(life.model.geom(geom).name.removeprefix("thing").split("_")[0])
        assert life.things[slot].name in question.text


def test_handles_are_hit_by_rays_and_do_not_include_the_mug(scenes):
    for question, life in questions(interaction.handle_point, 4, scenes):
        geom, _ = cast(life, question.answer["point"])
        assert life.model.geom(geom).name == "thing0_1"


def test_counts_are_those_of_the_visible_objects_with_the_word(scenes):
    for question, life in questions(perception.count, 12, scenes):
        noun = question.text.removeprefix("How many ").split(" are ")[0].split(" do ")[0]
        word = noun.removesuffix(" objects").removesuffix("s")
        matching = [slot for slot, t in enumerate(life.things) if word in (t.colour, t.shape)]
        assert question.answer == len(matching)
        assert all(life.mask(slot).any() for slot in matching)


def test_boxes_are_those_of_objects_from_left_to_right(scenes):
    for question, life in questions(perception.ground_boxes, 4, scenes):
        slots = [next(s for s in range(4) if perception.mask_box(life.mask(s)) == box) for box in question.answer]
        assert len(slots) >= 2
        assert [life.pixel(slot)[0] for slot in slots] == sorted(life.pixel(slot)[0] for slot in slots)


def test_distances_are_those_between_rays_that_meet_the_objects(scenes):
    for question, life in questions(perception.camera_distance, 4, scenes):
        slot = next(s for s, thing in enumerate(life.things) if thing.name in question.text)
        geom, hit = cast(life, life.pixel(slot))
        surface = np.linalg.norm(hit - life.camera.position) * 1000
        if geom in life.geoms(slot):
            assert surface - 1 <= question.answer <= surface + 1000 * life.things[slot].radius_m + 90


def test_relations_hold_in_the_image_and_on_the_table(scenes):
    for question, life in questions(perception.relation, 12, scenes, margin_m=0.04):
        names = [thing.name for thing in life.things]
        first = next(n for n in names if question.text.startswith(f"Is {n}"))
        second = next(n for n in names if question.text.endswith(f"{n}?"))
        a, b = names.index(first), names.index(second)
        here, there = life.data.geom_xpos[life.geoms(a)[0]], life.data.geom_xpos[life.geoms(b)[0]]
        gaps = {
            "left": life.pixel(b)[0] - life.pixel(a)[0],
            "right": life.pixel(a)[0] - life.pixel(b)[0],
            "nearer": np.linalg.norm(there - life.camera.position) - np.linalg.norm(here - life.camera.position),
            "farther": np.linalg.norm(here - life.camera.position) - np.linalg.norm(there - life.camera.position),
        }
        word = next(word for word in gaps if word in question.text)
        assert question.answer == ("yes" if gaps[word] > 0 else "no")


def test_table_distance_is_measured_between_geoms(scenes):
    for question, life in questions(perception.table_distance, 4, scenes):
        a, b = (s for s, thing in enumerate(life.things) if thing.name in question.text)
        gap = life.data.geom_xpos[life.geoms(a)[0]] - life.data.geom_xpos[life.geoms(b)[0]]
        assert question.answer == pytest.approx(1000 * np.hypot(*gap[:2]), abs=0.5)


def test_pushed_objects_touch_what_they_are_said_to_hit(scenes):
    for question, life in questions(prediction.pushed_into, 6, scenes):
        mover = next(s for s, t in enumerate(life.things) if question.text.lower().startswith(f"{t.name} is pushed"))
        side = -1.0 if "to the left" in question.text else 1.0
        said = question.text.split(f"{question.answer} ")[1].split(",")[0].removesuffix(".")
        assert _slide(life, mover, side) == said


def _slide(life, mover, side):
    """First object whose footprint (a polygon's points) overlaps the moved one's hull, in steps of 2 mm."""
    hulls = [convex_hull(np.concatenate([t.vertices(p)[:, :2] for p in t.parts])) for t in life.things]
    for step in range(500):
        moved = hulls[mover] + [side * 0.002 * step, 0.0]
        for slot, hull in enumerate(hulls):
            if slot != mover and _overlap(moved, hull):
                return life.things[slot].name
    return "none"


def _overlap(first, second):
    """Whether convex polygons overlap, by the separating-axis theorem."""
    for corners in (first, second):
        edges = np.roll(corners, -1, axis=0) - corners
        for normal in np.stack([-edges[:, 1], edges[:, 0]], axis=1):
            a, b = first @ normal, second @ normal
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True


def test_free_places_are_free_when_tried(scenes):
    for question, life in questions(interaction.free_place, 4, scenes):
        width = float(question.text.split(" mm wide")[0].split()[-1]) / 1000
        mask = decode_mask(question.answer["mask"])
        rows, columns = np.nonzero(mask)
        for row, column in list(zip(rows, columns, strict=True))[:: max(1, len(rows) // 12)]:
            point = (np.array([column, row]) + 0.5) / mask.shape[0] * 1000
            geom, hit = cast(life, point)
            assert life.model.geom(geom).name == "table"
            for thing in life.things:
                footprint = np.concatenate([thing.vertices(p)[:, :2] for p in thing.parts])
                assert np.linalg.norm(footprint - hit[:2], axis=1).min() > width / 2


def test_reach_is_confirmed_by_an_arm_that_goes_there():
    env = TabletopEnv("lift_pot", image_size=None)
    env.reset(seed=0)
    quat = se3.matrix_to_quat(tool_rotation(np.pi / 2, DOWN))
    near, far = np.array([-0.2, 0.0, 1.0]), np.array([0.25, 0.2, 1.1])
    assert reachable(near, 0.05)[0] is True and reachable(far, 0.05)[0] is False
    for position, arrives in ((near, True), (far, False)):
        action = env.expert_action()
        action[:8] = [*position, *quat, 1.0]
        for _ in range(40):
            env.advance(action)
        assert (np.linalg.norm(env.world.tcp(0).position - position) < 0.02) == arrives
        env.reset(seed=0)


def test_towers_are_read_from_the_top(scenes):
    for question, life in questions(planning.unstack_order, 3, scenes):
        heights = {f"{t.colour} {t.shape}": t.position[2] for t in life.things}
        assert [heights[name] for name in question.answer] == sorted(
            (heights[n] for n in question.answer), reverse=True
        )


def test_stacked_cubes_touch_and_do_not_overlap():
    things = stack(np.random.default_rng(0), ["red", "green", "blue"], np.zeros(2))
    gaps = np.diff([thing.position[2] for thing in things])
    np.testing.assert_allclose(gaps, things[0].height_m)


def test_recorded_rollouts_replay_to_the_states_that_are_shown():
    run = rollout("stack_blocks_two", "clean", 5, False)
    assert run.succeeded
    time = len(run.snapshots) // 2
    moment = Moment(run, time, Knobs())
    env = TabletopEnv("stack_blocks_two", "clean", image_size=None)
    env.load(run.snapshots[time])
    for name, path in run.objects.items():
        np.testing.assert_array_equal(env.world.body(name).position, path[time])
    for later in range(time, time + 10):
        np.testing.assert_array_equal(env.world.body("red").position, run.objects["red"][later])
        env.advance(env.expert_action())
    side = 256
    ours = moment.pixel(run.objects["green"][time])
    body = env.world.model.body("green").id
    geom = moment.segments[ours[1] * side // 1000, ours[0] * side // 1000]
    assert env.world.model.geom_bodyid[geom] == body or not moment.shows("green")
    assert moment.env.render_camera(CAMERA, 64, 64).shape == (64, 64, 3)


def test_done_states_pass_the_tasks_own_check_and_undone_ones_do_not():
    for question, _ in questions(planning.task_done, 6):
        task, rest = question.scene.split(".")[0], question.scene.split(".", 1)[1]
        run = rollout(task, rest.split(":")[0].split(".")[0], int(rest.split(":")[1]), "clumsy" in rest)
        assert question.answer == "no" or run.progress.max() == 1.0


def test_paths_start_and_end_where_the_object_does():
    for question, _ in questions(prediction.object_path, 3, waypoints=7):
        assert len(question.answer) == 7
        steps = np.linalg.norm(np.diff(np.array(question.answer, dtype=float), axis=0), axis=1)
        assert steps.max() <= 2.5 * np.median(steps) + 5


def test_filled_polygons_are_those_of_a_point_in_polygon_test():
    corners = convex_hull(np.random.default_rng(3).uniform(0.2, 0.9, (12, 2)))
    filled = fill_convex(corners, 40)
    centres = pixel_centres(40)
    edges = np.roll(corners, -1, axis=0) - corners
    cross = edges[:, 0] * (centres[..., None, 1] - corners[:, 1]) - edges[:, 1] * (
        centres[..., None, 0] - corners[:, 0]
    )
    assert (filled == (cross >= 0).all(axis=-1)).all()
    assert 0.2 < filled.mean() < 0.6


def test_run_lengths_are_those_that_the_rewards_read():
    for seed in range(4):
        mask = np.random.default_rng(seed).random((9, 13)) < 0.4
        mask[0, 0] = seed % 2 == 0
        assert (decode_mask(run_lengths(mask)) == mask).all()


def test_harder_levels_have_more_objects_and_smaller_margins():
    easy, hard = knobs_at(0.0), knobs_at(1.0)
    assert hard.num_objects > easy.num_objects and hard.margin_m < easy.margin_m
