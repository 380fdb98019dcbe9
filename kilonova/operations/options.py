"""Options that operations go by; names are those of OpenStack where the meaning is the same."""

from __future__ import annotations

from typing import Literal

import msgspec


class OperationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in seconds."""

    shutdown_timeout: float = 60.0
    """How long a guest may take for a clean shutdown. Spec: PWR-04."""
    shutdown_timeout_max: float = 600.0
    """Cap on what an image property may ask for. Spec: PWR-07."""
    shutdown_retry_interval: float = 10.0
    """Pause between shutdown signals."""
    wait_soft_reboot_seconds: float = 120.0
    """How long a guest may take to obey a soft reboot, before it is rebooted hard."""
    shelved_offload_time: float = 0.0
    """How long a shelved server stays on its host; 0 for not at all, less for ever. Spec: SHV-02, SHV-13, SHV-31."""
    rescue_timeout: float = 0.0
    """Seconds after which a server that is rescued is unrescued; 0 for never. Spec: PER-31, PER-32."""
    vif_plugging_timeout: float = 300.0
    """How long a build waits for the network service to wire the interfaces; 0 does not wait."""
    vif_plugging_is_fatal: bool = True
    """Whether a build fails when they are not wired in time."""
    arq_binding_timeout: float = 300.0
    """How long a build waits for the accelerator service to bind what it asks of it. Spec: BLD-121."""
    max_attempts: int = 3
    """Hosts tried for one build. Spec: BLD-63, BLD-64."""
    instance_build_timeout: float = 0.0
    """Seconds after which a server that is still being built is put in error; 0 for no limit. Spec: BLD-21, BLD-22."""
    consecutive_build_service_disable_threshold: int = 10
    """0 stops the counting of builds that failed because of their host; any other number only makes the scheduler
    prefer hosts without. Spec: BLD-45, BLD-46."""
    network_allocate_retries: int = 2
    """Further attempts at allocating networks after one that may pass. Spec: NET-02."""
    block_device_allocate_retries: int = 60
    """Further looks at a volume that is made for a new server, until it is available. Spec: BDM-01."""
    block_device_allocate_retries_interval: float = 3.0
    """Seconds between them. Spec: BDM-02."""
    reimage_timeout_per_gb: float = 20.0
    """How long a rebuild waits for each GiB of a root volume into which an image is written. Spec: EMV-39."""
    default_access_ip_network_name: str = ""
    """Network that gives the access addresses of a server. Spec: BLD-89."""
    non_inheritable_image_properties: tuple[str, ...] = ("cache_in_nova", "bittorrent")
    """Properties that the image of a snapshot does not take over from the image of its server. Spec: EMG-32."""
    max_disk_devices_to_attach: int = -1
    """How many disks a server may have; -1 for as many as there are names. Spec: INI-005."""
    force_config_drive: bool = False
    """Give every server a config drive."""
    reclaim_instance_interval: float = 0.0
    """How long a deleted server can still be restored; 0 deletes for good at once. Spec: DEL-75."""
    dhcp_domain: str = "novalocal"
    """Appended to host names in metadata."""
    allow_resize_to_same_host: bool = True
    """Whether a server that gets another flavor may stay on its host."""
    resize_confirm_window: float = 0.0
    """Seconds after which a resize that nobody has decided on is confirmed; 0 for never. Spec: PER-35."""
    sync_power_state_interval: float = 0.0
    """Seconds between comparisons of what a host's guests are with their records; 0 compares with each report of the
    host, a negative number never. Spec: PSY-02."""
    update_resources_interval: float = 60.0
    """Seconds after which what a host has is written to placement although it has not changed; 0 with each report, a
    negative number never. Spec: RSU-07."""
    precache_concurrency: int = 1
    """Hosts of an aggregate to which images are fetched at once. Spec: API-230."""
    reboot_timeout: float = 0.0
    """Seconds after which a soft reboot that has not ended is replaced by a hard one; 0 for never. Spec: PER-25,
    PER-26."""
    running_deleted_instance_action: Literal["noop", "log", "shutdown", "reap"] = "reap"
    """What is done about guests whose servers are deleted: nothing, told, switched off, or removed. Spec: PER-82."""
    running_deleted_instance_poll_interval: float = 1800.0
    """Seconds between looks for them; a negative number never looks."""
    running_deleted_instance_timeout: float = 0.0
    """Seconds for which a server must have been deleted. Spec: PER-85."""
    maximum_instance_delete_attempts: int = 5
    """How often the removal of what a deleted server left may fail until an operator has to look. Spec: PER-96."""
    heal_instance_info_cache_interval: float = 60.0
    """Seconds after which what the record of one more server of each host says of its interfaces is compared with the
    network service; 0 for never. Spec: PER-09."""
    volume_usage_poll_interval: float = 0.0
    """Seconds after which what servers do with their volumes is counted, and told as `volume.usage`, which detaching a
    volume does then, too; 0 or a negative number for never. Spec: VOL-30, PER-66."""
    instance_delete_interval: float = 300.0
    """Seconds between looks for what deleted servers and failed migrations have left on hosts, and for console tokens
    that have expired; a negative number never looks."""

    def __post_init__(self) -> None:
        if self.max_disk_devices_to_attach == 0:
            raise ValueError("max_disk_devices_to_attach is 0, so that no server could boot; it is -1 for no limit, or "
                             "at least 1")
