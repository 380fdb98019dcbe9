"""Rules judged by oslo.policy under an operator's policy file. Imported only when there is such a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from oslo_config import cfg
from oslo_policy import policy as oslo

from kilonova.api.policy import BASE_RULES, PolicyFileInvalid, Rule, Target, credentials
from kilonova.domain.context import RequestContext


class PolicyFile:
    """The defaults with the overrides of one file, as it is now.

    Raises:
        PolicyFileInvalid: the file cannot be parsed.
    """

    def __init__(self, file: Path, rules: Mapping[str, Rule]) -> None:
        defaults = [oslo.RuleDefault(name, check) for name, check in BASE_RULES.items()]
        defaults += [oslo.RuleDefault(name, rule.audience.value) for name, rule in rules.items()]
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        self._enforcer = oslo.Enforcer(conf, policy_file=str(file.resolve()))
        self._enforcer.register_defaults(defaults)
        self._enforcer.suppress_default_change_warnings = True
        try:
            self._enforcer.load_rules(force_reload=True)
            self._enforcer.use_conf = False  # or it looks at the file again before every check
        except (ValueError, OSError, cfg.Error) as error:
            raise PolicyFileInvalid(f"The policy file {file} is not valid: {error}") from error

    def allows(self, rule: Rule, context: RequestContext, target: Target) -> bool:
        if context.project_id is None:
            return False
        return self._holds(rule.name, context, target)

    def is_admin(self, context: RequestContext) -> bool:
        return self._holds("context_is_admin", context, Target(context.project_id, context.user_id))

    def _holds(self, name: str, context: RequestContext, target: Target) -> bool:
        whose = {"project_id": target.project_id, "user_id": target.user_id}
        return bool(self._enforcer.enforce(name, whose, credentials(context)))
