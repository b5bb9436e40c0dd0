"""Finding plugins: modules and packages written for each test, found through real entry points."""

import inspect
import os
import subprocess
import sys
import textwrap
from importlib.metadata import Distribution, EntryPoint, distributions

import pytest

from weaver import hookspecs
from weaver.errors import PluginBroken, UnknownName
from weaver.registry import KINDS, load_registry
from weaver.testing import check_loss

HEADER = "from weaver.hookspecs import hookimpl\nfrom weaver.loss import Loss\n\n"


def yields(*names):
    """A module whose hook yields losses of these names."""
    losses = "".join(f"    yield Loss({name!r}, lambda *_: None)\n" for name in names)
    return f"{HEADER}@hookimpl\ndef weaver_losses():\n{losses}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A maker of installed packages: a module and the metadata pip would write; returns its entry points."""
    made = []

    def make(name, source, entry_point=None, version="1.0"):
        module = name.replace("-", "_")
        folder = tmp_path / name
        metadata = folder / f"{module}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[weaver]\n{entry_point or module} = {module}\n")
        monkeypatch.syspath_prepend(folder)
        made.append(module)
        [found] = distributions(path=[str(folder)])
        return list(found.entry_points)

    yield make
    for module in made:
        sys.modules.pop(module, None)


def test_the_plugins_weaver_ships_are_found_by_their_entry_points():
    registry = load_registry()
    assert {"cross_entropy", "importance_sampling", "ppo", "cispo", "dro"} <= registry.losses.keys()
    assert {"echo", "peft"} <= registry.backends.keys()
    assert {"echo", "embedded"} <= registry.samplers.keys()
    assert registry.failed == ()


def test_an_installed_package_adds_its_names_to_those(package):
    package("weaver-more", yields("more"))
    registry = load_registry()
    assert registry.loss("more").name == "more"
    assert registry.loss("ppo").name == "ppo"


def test_a_name_nobody_registered_is_answered_with_those_there_are(package):
    registry = load_registry(found=package("weaver-two", yields("b", "a")))
    with pytest.raises(UnknownName, match=r"^there is no loss 'c'; there are: a, b$"):
        registry.loss("c")
    with pytest.raises(UnknownName, match=r"^there is no backend 'peft'; there are: none$"):
        registry.backend("peft")


def test_one_name_in_two_plugins_is_refused_naming_both(package):
    found = package("weaver-one", yields("same"), version="0.2") + package("weaver-two", yields("same"))
    expected = (
        r"^two plugins register the loss 'same': weaver-one 0.2 and weaver-two 1.0. "
        r"Uninstall one, or name one in WEAVER_DISABLE_PLUGINS.$"
    )
    with pytest.raises(PluginBroken, match=expected):
        load_registry(found=found)


@pytest.mark.parametrize("disabled", ["weaver_two", "weaver-two 1.0"])
def test_naming_one_of_them_as_disabled_settles_it(package, disabled):
    found = package("weaver-one", yields("same", "one")) + package("weaver-two", yields("same", "two"))
    assert load_registry([disabled], found).losses.keys() == {"same", "one"}


def test_a_disabled_plugin_is_not_even_imported(package):
    registry = load_registry(["weaver_broken"], package("weaver-broken", "raise SystemError('imported')"))
    assert registry.failed == ()


def test_a_package_that_registers_a_shipped_name_is_refused(package):
    found = [EntryPoint("losses", "weaver.plugins.losses", "weaver"), *package("weaver-mine", yields("ppo"))]
    with pytest.raises(PluginBroken, match=r"the loss 'ppo': weaver.plugins.losses and weaver-mine 1.0"):
        load_registry(found=found)


def test_one_plugin_that_yields_a_name_twice_is_refused(package):
    with pytest.raises(PluginBroken, match=r"'same': weaver-one 1.0 and weaver-one 1.0"):
        load_registry(found=package("weaver-one", yields("same", "same")))


def test_a_misspelt_hook_is_refused_by_name(package):
    source = yields("a").replace("weaver_losses", "weaver_loses")
    with pytest.raises(PluginBroken, match=r"^the plugin weaver-typo 1.0 breaks the contract .*weaver_loses"):
        load_registry(found=package("weaver-typo", source))


def test_a_hook_with_an_argument_it_is_not_given_is_refused(package):
    source = yields("a").replace("weaver_losses()", "weaver_losses(registry)")
    with pytest.raises(PluginBroken, match=r"(?s)the plugin weaver-more 1.0 breaks the contract .*registry"):
        load_registry(found=package("weaver-more", source))


def test_a_hook_that_raises_names_its_plugin(package):
    source = f"{HEADER}@hookimpl\ndef weaver_losses():\n    yield Loss('a', None)\n    raise KeyError('oh')\n"
    with pytest.raises(
        PluginBroken, match=r"^weaver-oh 1.0: weaver_losses raised KeyError: 'oh'. Mend or uninstall it,"
    ):
        load_registry(found=package("weaver-oh", source))


@pytest.mark.parametrize("returned", ["None", "3"])
def test_a_hook_that_yields_nothing_one_can_iterate_names_its_plugin(package, returned):
    source = f"{HEADER}@hookimpl\ndef weaver_losses():\n    return {returned}\n"
    with pytest.raises(
        PluginBroken, match=r"^weaver-oh 1.0: weaver_losses raised TypeError: .*not iterable. Mend or uninstall it,"
    ):
        load_registry(found=package("weaver-oh", source))


def test_a_record_of_the_wrong_class_is_refused(package):
    source = f"{HEADER}@hookimpl\ndef weaver_losses():\n    yield 'ppo'\n"
    with pytest.raises(
        PluginBroken, match=r"^weaver-str 1.0: weaver_losses yielded 'ppo', not a Loss. Mend or uninstall it, or"
    ):
        load_registry(found=package("weaver-str", source))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise OSError('libcuda.so')", "OSError: libcuda.so"),
        ("def broken(:", "SyntaxError: "),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_when_a_name_is_missed(package, source, reason):
    found = package("weaver-broken", source) + package("weaver-fine", yields("fine"))
    registry = load_registry(found=found)
    assert registry.loss("fine").name == "fine"
    with pytest.raises(UnknownName) as missed:
        registry.loss("mine")
    expected = "there is no loss 'mine'; there are: fine. The plugin weaver-broken 1.0 is installed but could not be "
    assert str(missed.value).startswith(f"{expected}imported: {reason}")


def test_a_missing_attribute_of_a_plugin_is_remembered_too(package):
    [entry_point] = package("weaver-fine", yields("fine"))
    [failed] = load_registry(found=[EntryPoint("x", f"{entry_point.value}:absent", "weaver")]).failed
    assert failed.reason.startswith("AttributeError")


def test_one_entry_point_name_in_two_packages_is_refused_naming_both(package):
    """pluggy would ignore the second without a word."""
    found = package("weaver-one", yields("one"), "loss") + package("weaver-two", yields("two"), "loss")
    expected = "two packages have an entry point 'loss': weaver-one 1.0 and weaver-two 1.0. Uninstall one"
    with pytest.raises(PluginBroken, match=expected):
        load_registry(found=found)


def test_a_package_that_is_found_twice_on_the_path_counts_once(package):
    """An editable install and its source folder both have the metadata."""
    found = package("weaver-one", yields("one"))
    assert load_registry(found=[*found, *found]).losses.keys() == {"one"}


def test_a_package_may_have_two_entry_points(package, tmp_path):
    [first] = package("weaver-one", yields("one"))
    (tmp_path / "weaver-one/weaver_second.py").write_text(yields("two"))
    metadata = tmp_path / "weaver-one/weaver_one-1.0.dist-info/entry_points.txt"
    metadata.write_text("[weaver]\na = weaver_one\nb = weaver_second\n")
    [found] = distributions(path=[str(tmp_path / "weaver-one")])
    registry = load_registry(found=list(found.entry_points))
    assert registry.losses["two"].plugin == "weaver-one 1.0 (b)"
    assert [loaded.names for loaded in registry.plugins] == [{"weaver_losses": ("one",)}, {"weaver_losses": ("two",)}]
    assert first.name == "weaver_one"


def test_every_record_of_a_loss_names_its_package(package):
    registry = load_registry(found=package("weaver-one", yields("one"), version="0.2"))
    assert registry.loss("one").plugin == "weaver-one 0.2"
    assert registry.loss("one").blamed == "the loss 'one' of weaver-one 0.2"


def test_a_strict_registry_refuses_a_plugin_that_cannot_be_imported(package):
    found = package("weaver-broken", "raise OSError('libcuda.so')")
    expected = "the plugin weaver-broken 1.0 could not be imported: OSError: libcuda.so. Mend or uninstall it, name it"
    with pytest.raises(PluginBroken, match=expected):
        load_registry(found=found, strict=True)
    assert load_registry(["weaver-broken"], found, strict=True).failed == ()


HOOKS = {name: hook for name, hook in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("weaver_")}


def test_there_is_a_kind_of_record_for_every_hook():
    assert set(KINDS) == set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_is_a_plugin_that_works(package, hook):
    example = textwrap.dedent(inspect.getdoc(HOOKS[hook]).partition("\n\n")[2])
    registry = load_registry(found=package("weaver-example", example))
    [loaded] = registry.plugins
    [(used, [name])] = loaded.names.items()
    assert used == hook
    kind, of = KINDS[hook]
    assert isinstance(registry.named(name)[kind], of)


def test_the_example_of_a_store_keeps_folders(package, tmp_path):
    example = textwrap.dedent(inspect.getdoc(HOOKS["weaver_checkpoint_stores"]).partition("\n\n")[2])
    store = load_registry(found=package("weaver-example", example)).store("disk").open(f"disk://{tmp_path}/kept")
    for folder in ("from", "to"):
        (tmp_path / folder).mkdir()
    (tmp_path / "from/a").write_text("1")
    store.put("x/y", tmp_path / "from")
    store.get("x/y", tmp_path / "to")
    assert (tmp_path / "to/a").read_text() == "1"
    store.delete("x/y")
    with pytest.raises(FileNotFoundError):
        store.get("x/y", tmp_path / "to")


def test_the_example_of_a_loss_keeps_the_contract(package):
    example = textwrap.dedent(inspect.getdoc(HOOKS["weaver_losses"]).partition("\n\n")[2])
    check_loss(load_registry(found=package("weaver-example", example)).loss("my_reinforce"))


WORKER = """
import sys
from weaver.registry import losses_for_worker
print(sorted(losses_for_worker(sys.argv[1:], "rank 1 of 2")))
"""


def worker(*names, path=""):
    """A process of its own, with another environment than this one's."""
    command = [sys.executable, "-c", WORKER, *names]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_a_worker_process_loads_losses_by_name(package, tmp_path):
    package("weaver-mine", yields("mine"))
    found = worker("ppo", "mine", path=str(tmp_path / "weaver-mine"))
    assert found.stdout == "['mine', 'ppo']\n"


def test_a_worker_process_without_a_loss_says_who_lacks_it_and_what_to_do(package):
    package("weaver-mine", yields("mine"))
    assert load_registry().loss("mine").name == "mine"
    lacking = worker("ppo", "mine").stderr
    assert "UnknownName: rank 1 of 2 has not the loss 'mine', which the server has: there is no loss 'mine';" in lacking
    assert "Install the loss's package, in the same version, in the environment that this process runs in" in lacking


def test_a_record_is_found_by_its_own_name_whatever_the_entry_point_is_called(package):
    found = package("weaver-one", yields("one"), "something-else")
    assert isinstance(found[0].dist, Distribution)
    assert load_registry(found=found).loss("one").name == "one"
