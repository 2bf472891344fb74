"""Every constant, size and offset of xenvirt.virtio is what Linux's own headers say.

A C program that includes the headers of linux-libc-dev prints them all. What the installed headers lack is
checked against the text of the specification, as it stands in SPECIFICATION below.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from types import ModuleType

import pytest

from xenvirt.virtio import (
    block,
    can,
    console,
    features,
    i2c,
    ids,
    input,  # noqa: A004
    net,
    scsi,
    sound,
    spi,
    structure,
    vsock,
)

INCLUDE = Path("/usr/include/linux")


@dataclass(frozen=True)
class Constants:
    """An enum and the C constants that it stands for: `prefix` and the member's name, if `names` has no
    other.
    """

    header: str
    enum: type[IntEnum] | type[IntFlag]
    prefix: str
    bits: bool = False
    """The C constants are bit numbers."""
    names: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Members that older headers lack, and where they are specified."""


@dataclass(frozen=True)
class Layout:
    """A structure and the C structure that it stands for."""

    header: str
    structure: type[structure.Structure]
    c_type: str
    names: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Trailing fields that older headers lack."""


ZONED = "virtio 1.3, section 5.2.6"
NEWER_NET = "virtio 1.3, section 5.1.3"

CONSTANTS = [
    Constants(
        "virtio_ids.h",
        ids.DeviceId,
        "VIRTIO_ID_",
        names={
            "ENTROPY": "VIRTIO_ID_RNG",
            "IO_MEMORY": "VIRTIO_ID_IOMEM",
            "NINEP": "VIRTIO_ID_9P",
            "SIGNAL_DISTRIBUTION": "VIRTIO_ID_SIGNAL_DIST",
            "MEMORY": "VIRTIO_ID_MEM",
            "NITRO_SECURE_MODULE": "VIRTIO_ID_NITRO_SEC_MOD",
            "I2C": "VIRTIO_ID_I2C_ADAPTER",
            "PARAMETER_SERVER": "VIRTIO_ID_PARAM_SERV",
            "BLUETOOTH": "VIRTIO_ID_BT",
        },
        absent=dict.fromkeys(("RDMA", "CAMERA", "ISM", "SPI"), "virtio 1.3, section 5"),
    ),
    Constants(
        "virtio_config.h",
        features.Feature,
        "VIRTIO_F_",
        bits=True,
        names={
            "INDIRECT_DESC": "VIRTIO_RING_F_INDIRECT_DESC",
            "EVENT_IDX": "VIRTIO_RING_F_EVENT_IDX",
            "LOG_ALL": "VHOST_F_LOG_ALL",
            "PROTOCOL_FEATURES": "VHOST_USER_F_PROTOCOL_FEATURES",
        },
        absent={
            "PROTOCOL_FEATURES": "vhost-user, communication",
            "NOTIFICATION_DATA": "virtio 1.3, section 6",
            "NOTIF_CONFIG_DATA": "virtio 1.3, section 6",
            "ADMIN_VQ": "virtio 1.3, section 6",
        },
    ),
    Constants("virtio_config.h", features.DeviceStatus, "VIRTIO_CONFIG_S_"),
    Constants(
        "virtio_blk.h",
        block.BlockFeature,
        "VIRTIO_BLK_F_",
        bits=True,
        absent={"LIFETIME": "virtio 1.3, section 5.2.3", "ZONED": "virtio 1.3, section 5.2.3"},
    ),
    Constants(
        "virtio_blk.h",
        block.RequestType,
        "VIRTIO_BLK_T_",
        absent={"GET_LIFETIME": ZONED}
        | {name: ZONED for name in block.RequestType.__members__ if name.startswith("ZONE_")},
    ),
    Constants(
        "virtio_blk.h",
        block.Status,
        "VIRTIO_BLK_S_",
        absent={name: ZONED for name in block.Status.__members__ if name.startswith("ZONE_")},
    ),
    Constants("virtio_blk.h", block.RangeFlag, "VIRTIO_BLK_WRITE_ZEROES_FLAG_"),
    Constants(
        "virtio_blk.h",
        block.ZonedModel,
        "VIRTIO_BLK_Z_",
        names={"HOST_MANAGED": "VIRTIO_BLK_Z_HM", "HOST_AWARE": "VIRTIO_BLK_Z_HA"},
        absent=dict.fromkeys(block.ZonedModel.__members__, "virtio 1.3, section 5.2.4"),
    ),
    Constants("virtio_console.h", console.ConsoleFeature, "VIRTIO_CONSOLE_F_", bits=True),
    Constants("virtio_console.h", console.ControlEvent, "VIRTIO_CONSOLE_"),
    Constants(
        "virtio_net.h",
        net.NetFeature,
        "VIRTIO_NET_F_",
        bits=True,
        absent=dict.fromkeys(
            ("DEVICE_STATS", "VQ_NOTF_COAL", "GUEST_USO4", "GUEST_USO6", "HOST_USO", "GUEST_HDRLEN"),
            NEWER_NET,
        ),
    ),
    Constants("virtio_net.h", net.LinkStatus, "VIRTIO_NET_S_"),
    Constants("virtio_net.h", net.HeaderFlag, "VIRTIO_NET_HDR_F_"),
    Constants(
        "virtio_net.h", net.GsoType, "VIRTIO_NET_HDR_GSO_", absent={"UDP_L4": "virtio 1.3, section 5.1.6"}
    ),
    Constants("virtio_net.h", net.ControlClass, "VIRTIO_NET_CTRL_"),
    Constants("virtio_net.h", net.ReceiveCommand, "VIRTIO_NET_CTRL_RX_"),
    Constants("virtio_net.h", net.MacCommand, "VIRTIO_NET_CTRL_MAC_"),
    Constants("virtio_net.h", net.VlanCommand, "VIRTIO_NET_CTRL_VLAN_"),
    Constants("virtio_net.h", net.QueueCommand, "VIRTIO_NET_CTRL_MQ_"),
    Constants("virtio_net.h", net.ControlStatus, "VIRTIO_NET_"),
    Constants(
        "virtio_vsock.h",
        vsock.VsockFeature,
        "VIRTIO_VSOCK_F_",
        bits=True,
        absent=dict.fromkeys(("STREAM", "NO_IMPLIED_STREAM"), "virtio 1.3, section 5.10.3"),
    ),
    Constants("virtio_vsock.h", vsock.SocketType, "VIRTIO_VSOCK_TYPE_"),
    Constants("virtio_vsock.h", vsock.Operation, "VIRTIO_VSOCK_OP_"),
    Constants(
        "virtio_vsock.h",
        vsock.ShutdownFlag,
        "VIRTIO_VSOCK_SHUTDOWN_",
        names={"RECEIVE": "VIRTIO_VSOCK_SHUTDOWN_RCV"},
    ),
    Constants("virtio_vsock.h", vsock.PacketFlag, "VIRTIO_VSOCK_SEQ_"),
    Constants("virtio_vsock.h", vsock.EventId, "VIRTIO_VSOCK_EVENT_"),
    Constants("virtio_i2c.h", i2c.I2cFeature, "VIRTIO_I2C_F_", bits=True),
    Constants("virtio_i2c.h", i2c.RequestFlag, "VIRTIO_I2C_FLAGS_", names={"READ": "VIRTIO_I2C_FLAGS_M_RD"}),
    Constants("virtio_i2c.h", i2c.Status, "VIRTIO_I2C_MSG_"),
    Constants("virtio_can.h", can.CanFeature, "VIRTIO_CAN_F_", bits=True),
    Constants("virtio_can.h", can.ControllerStatus, "VIRTIO_CAN_S_CTRL_"),
    Constants("virtio_can.h", can.MessageType, "VIRTIO_CAN_"),
    Constants("virtio_can.h", can.FrameFlag, "VIRTIO_CAN_FLAGS_"),
    Constants("virtio_can.h", can.Result, "VIRTIO_CAN_RESULT_"),
    Constants(
        "virtio_spi.h",
        spi.Mode,
        "VIRTIO_SPI_",
        names={"LSB_FIRST": "VIRTIO_SPI_MODE_LSB_FIRST", "LOOP": "VIRTIO_SPI_MODE_LOOP"},
    ),
    Constants("virtio_spi.h", spi.ModeSupport, "VIRTIO_SPI_MF_SUPPORT_"),
    Constants("virtio_spi.h", spi.Lanes, "VIRTIO_SPI_RX_TX_SUPPORT_"),
    Constants(
        "virtio_spi.h",
        spi.Result,
        "VIRTIO_SPI_",
        names={"OK": "VIRTIO_SPI_TRANS_OK"},
    ),
    Constants("virtio_input.h", input.ConfigSelect, "VIRTIO_INPUT_CFG_"),
    Constants("virtio_scsi.h", scsi.ScsiFeature, "VIRTIO_SCSI_F_", bits=True),
    Constants("virtio_scsi.h", scsi.Response, "VIRTIO_SCSI_S_"),
    Constants("virtio_scsi.h", scsi.TaskAttribute, "VIRTIO_SCSI_S_"),
    Constants("virtio_scsi.h", scsi.ControlType, "VIRTIO_SCSI_T_"),
    Constants("virtio_scsi.h", scsi.TaskManagement, "VIRTIO_SCSI_T_TMF_"),
    Constants("virtio_scsi.h", scsi.EventType, "VIRTIO_SCSI_T_"),
    Constants("virtio_scsi.h", scsi.ResetReason, "VIRTIO_SCSI_EVT_RESET_"),
    Constants("virtio_snd.h", sound.Queue, "VIRTIO_SND_VQ_"),
    Constants("virtio_snd.h", sound.Direction, "VIRTIO_SND_D_"),
    Constants("virtio_snd.h", sound.Request, "VIRTIO_SND_R_"),
    Constants("virtio_snd.h", sound.EventType, "VIRTIO_SND_EVT_"),
    Constants("virtio_snd.h", sound.Status, "VIRTIO_SND_S_"),
    Constants("virtio_snd.h", sound.PcmFeature, "VIRTIO_SND_PCM_F_", bits=True),
    Constants("virtio_snd.h", sound.Format, "VIRTIO_SND_PCM_FMT_"),
    Constants(
        "virtio_snd.h",
        sound.Rate,
        "",
        names={name: name.replace("HZ_", "VIRTIO_SND_PCM_RATE_") for name in sound.Rate.__members__},
    ),
]

CODE = {"code": "hdr.code"}
STREAM = {"code": "hdr.hdr.code", "stream_id": "hdr.stream_id"}
ITEM = {"hda_fn_nid": "hdr.hda_fn_nid"}

LAYOUTS = [
    Layout("virtio_blk.h", block.RequestHeader, "struct virtio_blk_outhdr"),
    Layout("virtio_blk.h", block.DiscardWriteZeroes, "struct virtio_blk_discard_write_zeroes"),
    Layout(
        "virtio_blk.h",
        block.BlockConfig,
        "struct virtio_blk_config",
        names={
            "cylinders": "geometry.cylinders",
            "heads": "geometry.heads",
            "sectors": "geometry.sectors",
            "writeback": "wce",
            "unused0": "unused",
            "zone_sectors": "zoned.zone_sectors",
            "max_open_zones": "zoned.max_open_zones",
            "max_active_zones": "zoned.max_active_zones",
            "max_append_sectors": "zoned.max_append_sectors",
            "write_granularity": "zoned.write_granularity",
            "zoned_model": "zoned.model",
            "unused2": "zoned.unused2",
        },
        absent=(
            "zone_sectors",
            "max_open_zones",
            "max_active_zones",
            "max_append_sectors",
            "write_granularity",
            "zoned_model",
            "unused2",
        ),
    ),
    Layout("virtio_console.h", console.ConsoleConfig, "struct virtio_console_config"),
    Layout("virtio_console.h", console.Control, "struct virtio_console_control"),
    Layout("virtio_net.h", net.NetConfig, "struct virtio_net_config"),
    Layout("virtio_net.h", net.PacketHeader, "struct virtio_net_hdr_v1"),
    Layout("virtio_net.h", net.LegacyPacketHeader, "struct virtio_net_hdr"),
    Layout(
        "virtio_net.h",
        net.ControlHeader,
        "struct virtio_net_ctrl_hdr",
        names={"command_class": "class", "command": "cmd"},
    ),
    Layout("virtio_net.h", net.QueuePairs, "struct virtio_net_ctrl_mq"),
    Layout("virtio_vsock.h", vsock.VsockConfig, "struct virtio_vsock_config"),
    Layout("virtio_vsock.h", vsock.PacketHeader, "struct virtio_vsock_hdr"),
    Layout("virtio_vsock.h", vsock.Event, "struct virtio_vsock_event"),
    Layout("virtio_i2c.h", i2c.RequestHeader, "struct virtio_i2c_out_hdr"),
    Layout("virtio_can.h", can.CanConfig, "struct virtio_can_config"),
    Layout("virtio_can.h", can.Control, "struct virtio_can_control_out"),
    Layout("virtio_can.h", can.Frame, "struct virtio_can_rx"),
    Layout("virtio_spi.h", spi.SpiConfig, "struct virtio_spi_config"),
    Layout("virtio_spi.h", spi.TransferHeader, "struct spi_transfer_head"),
    Layout(
        "virtio_input.h",
        input.InputConfig,
        "struct virtio_input_config",
        names={"length": "size", "data": "u"},
    ),
    Layout("virtio_input.h", input.InputEvent, "struct virtio_input_event"),
    Layout("virtio_input.h", input.AbsInfo, "struct virtio_input_absinfo"),
    Layout("virtio_input.h", input.DeviceIds, "struct virtio_input_devids"),
    Layout("virtio_scsi.h", scsi.ScsiConfig, "struct virtio_scsi_config"),
    Layout("virtio_scsi.h", scsi.CommandRequest, "struct virtio_scsi_cmd_req"),
    Layout("virtio_scsi.h", scsi.CommandResponse, "struct virtio_scsi_cmd_resp"),
    Layout("virtio_scsi.h", scsi.TaskManagementRequest, "struct virtio_scsi_ctrl_tmf_req"),
    Layout("virtio_scsi.h", scsi.Event, "struct virtio_scsi_event"),
    Layout("virtio_snd.h", sound.SoundConfig, "struct virtio_snd_config"),
    Layout("virtio_snd.h", sound.Header, "struct virtio_snd_hdr"),
    Layout("virtio_snd.h", sound.Event, "struct virtio_snd_event", names=CODE),
    Layout(
        "virtio_snd.h", sound.QueryInfo, "struct virtio_snd_query_info", names=CODE | {"item_size": "size"}
    ),
    Layout("virtio_snd.h", sound.JackInfo, "struct virtio_snd_jack_info", names=ITEM),
    Layout("virtio_snd.h", sound.PcmHeader, "struct virtio_snd_pcm_hdr", names=CODE),
    Layout("virtio_snd.h", sound.PcmInfo, "struct virtio_snd_pcm_info", names=ITEM),
    Layout("virtio_snd.h", sound.PcmSetParams, "struct virtio_snd_pcm_set_params", names=STREAM),
    Layout("virtio_snd.h", sound.PcmTransfer, "struct virtio_snd_pcm_xfer"),
    Layout("virtio_snd.h", sound.PcmStatus, "struct virtio_snd_pcm_status"),
]

# What linux-libc-dev of Debian 12 (6.1) lacks, as the specification has it.
SPECIFICATION = {
    # virtio 1.4, section "CAN Device"; the data after a frame's header has no fixed length.
    "virtio_can.h": """
        #define VIRTIO_CAN_F_CAN_CLASSIC 0
        #define VIRTIO_CAN_F_CAN_FD 1
        #define VIRTIO_CAN_F_RTR_FRAMES 2
        #define VIRTIO_CAN_F_LATE_TX_ACK 3
        #define VIRTIO_CAN_S_CTRL_BUSOFF (1 << 0)
        struct virtio_can_config { __le16 status; };
        #define VIRTIO_CAN_TX 0x0001
        #define VIRTIO_CAN_RX 0x0101
        #define VIRTIO_CAN_SET_CTRL_MODE_START 0x0201
        #define VIRTIO_CAN_SET_CTRL_MODE_STOP 0x0202
        #define VIRTIO_CAN_FLAGS_FD 0x4000
        #define VIRTIO_CAN_FLAGS_EXTENDED 0x8000
        #define VIRTIO_CAN_FLAGS_RTR 0x2000
        #define VIRTIO_CAN_RESULT_OK 0
        #define VIRTIO_CAN_RESULT_NOT_OK 1
        struct virtio_can_control_out { __le16 msg_type; };
        struct virtio_can_rx {
            __le16 msg_type; __le16 length; __u8 reserved_classic_dlc; __u8 padding;
            __le16 reserved_xl_priority; __le32 flags; __le32 can_id; __u8 sdu[];
        };
    """,
    # virtio 1.4, section "SPI Controller Device".
    "virtio_spi.h": """
        #define VIRTIO_SPI_CPHA (1 << 0)
        #define VIRTIO_SPI_CPOL (1 << 1)
        #define VIRTIO_SPI_CS_HIGH (1 << 2)
        #define VIRTIO_SPI_MODE_LSB_FIRST (1 << 3)
        #define VIRTIO_SPI_MODE_LOOP (1 << 4)
        #define VIRTIO_SPI_RX_TX_SUPPORT_DUAL (1 << 0)
        #define VIRTIO_SPI_RX_TX_SUPPORT_QUAD (1 << 1)
        #define VIRTIO_SPI_RX_TX_SUPPORT_OCTAL (1 << 2)
        #define VIRTIO_SPI_MF_SUPPORT_CPHA_0 (1 << 0)
        #define VIRTIO_SPI_MF_SUPPORT_CPHA_1 (1 << 1)
        #define VIRTIO_SPI_MF_SUPPORT_CPOL_0 (1 << 2)
        #define VIRTIO_SPI_MF_SUPPORT_CPOL_1 (1 << 3)
        #define VIRTIO_SPI_MF_SUPPORT_CS_HIGH (1 << 4)
        #define VIRTIO_SPI_MF_SUPPORT_LSB_FIRST (1 << 5)
        #define VIRTIO_SPI_MF_SUPPORT_LOOPBACK (1 << 6)
        #define VIRTIO_SPI_TRANS_OK 0
        #define VIRTIO_SPI_PARAM_ERR 1
        #define VIRTIO_SPI_TRANS_ERR 2
        struct virtio_spi_config {
            __u8 cs_max_number; __u8 cs_change_supported; __u8 tx_nbits_supported; __u8 rx_nbits_supported;
            __le32 bits_per_word_mask; __le32 mode_func_supported; __le32 max_freq_hz;
            __le32 max_word_delay_ns; __le32 max_cs_setup_ns; __le32 max_cs_hold_ns; __le32
            max_cs_inactive_ns;
        };
        struct spi_transfer_head {
            __u8 chip_select_id; __u8 bits_per_word; __u8 cs_change; __u8 tx_nbits; __u8 rx_nbits;
            __u8 reserved[3]; __le32 mode; __le32 freq; __le32 word_delay_ns; __le32 cs_setup_ns;
            __le32 cs_delay_hold_ns; __le32 cs_change_delay_inactive_ns;
        };
    """,
}

# Constants of the headers that have no member, and why.
LEFT_OUT = {
    "VIRTIO_BLK_F_WCE": "another name of FLUSH",
    "VIRTIO_BLK_T_BARRIER": "a legacy bit beside the type",
    "VIRTIO_BLK_ID_BYTES": "ID_SIZE",
    "VIRTIO_F_IOMMU_PLATFORM": "another name of ACCESS_PLATFORM",
    "VIRTIO_CONSOLE_BAD_ID": "BAD_ID",
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN": "MQ_PAIRS_MIN",
    "VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX": "MQ_PAIRS_MAX",
    "VIRTIO_SND_VQ_MAX": "a count",
}
WHOLLY_COVERED = (
    "VIRTIO_BLK_F_",
    "VIRTIO_BLK_T_",
    "VIRTIO_BLK_S_",
    "VIRTIO_CONSOLE_",
    "VIRTIO_F_",
    "VIRTIO_ID_",
    "VIRTIO_NET_F_",
    "VIRTIO_NET_HDR_",
    "VIRTIO_VSOCK_",
    "VIRTIO_I2C_",
    "VIRTIO_INPUT_CFG_",
    "VIRTIO_SCSI_F_",
    "VIRTIO_SCSI_S_",
    "VIRTIO_SCSI_T_",
    "VIRTIO_SND_VQ_",
    "VIRTIO_SND_R_",
    "VIRTIO_SND_S_",
    "VIRTIO_SND_EVT_",
    "VIRTIO_SND_PCM_",
)

pytestmark = pytest.mark.skipif(
    not (INCLUDE / "virtio_ids.h").exists() or shutil.which("gcc") is None,
    reason="needs gcc and Linux's headers: apt install gcc linux-libc-dev",
)


def text_of(header: str) -> str:
    """The header, or what stands for it; virtio_config.h stands for all that has feature bits of rings."""
    path = INCLUDE / header
    text = path.read_text() if path.exists() else SPECIFICATION[header]
    if header == "virtio_config.h":
        text += (INCLUDE / "virtio_ring.h").read_text() + (INCLUDE / "vhost_types.h").read_text()
    return text


def c_name(check: Constants, member: str) -> str:
    return check.names.get(member, check.prefix + member)


def has(header: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text_of(header)) is not None


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C program says: constants by name, sizes by type, offsets and lengths by type and field."""
    headers = sorted({check.header for check in CONSTANTS} | {layout.header for layout in LAYOUTS})
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/types.h>"]
    for header in [*headers, "virtio_ring.h", "vhost_types.h"]:
        lines.append(f"#include <linux/{header}>" if (INCLUDE / header).exists() else SPECIFICATION[header])
    lines.append('#define P(name, value) printf("%s\\t%llu\\n", name, (unsigned long long)(value))')
    lines.append("int main(void) {")
    for check in CONSTANTS:
        for name in (c_name(check, member) for member in check.enum.__members__):
            if has(check.header, name):
                lines.append(f'P("{name}", {name});')
    for layout in LAYOUTS:
        lines.append(f'P("{layout.c_type}", sizeof({layout.c_type}));')
        for python_name, c_field in fields_of(layout):
            lines.append(f'P("{layout.c_type}.{python_name}", offsetof({layout.c_type}, {c_field}));')
            lines.append(f'P("{layout.c_type}:{python_name}", sizeof((({layout.c_type} *)0)->{c_field}));')
    lines += ["return 0;", "}"]
    folder = tmp_path_factory.mktemp("headers")
    (folder / "print.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", "print", "print.c"], cwd=folder, check=True)
    output = subprocess.run([folder / "print"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split("\t") for line in output.splitlines())}


def fields_of(layout: Layout) -> Iterator[tuple[str, str]]:
    """Pairs of our name and the C name, without what an older header lacks."""
    older = "zoned" not in text_of(layout.header)
    for name, _, _ in layout.structure.fields():
        if not (older and name in layout.absent):
            yield name, layout.names.get(name, name)


@pytest.mark.parametrize(
    "check", CONSTANTS, ids=lambda check: f"{check.enum.__module__}.{check.enum.__name__}"
)
def test_constants_have_linux_values(check: Constants, printed: dict[str, int]) -> None:
    for member, value in check.enum.__members__.items():
        name = c_name(check, member)
        if name in printed:
            assert int(value) == (1 << printed[name] if check.bits else printed[name]), name
        else:
            assert member in check.absent, f"{name} is not in {check.header}, and not said to be absent"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.c_type)
def test_structures_have_linux_layout(layout: Layout, printed: dict[str, int]) -> None:
    known = [name for name, _ in fields_of(layout)]
    end = 0
    for name, _, offset in layout.structure.fields():
        if name in known:
            assert offset == printed[f"{layout.c_type}.{name}"], name
            end = offset + printed[f"{layout.c_type}:{name}"]
    assert end == printed[layout.c_type], "the C structure goes on after our last field"
    if not layout.absent or known[-1] == layout.absent[-1]:
        assert layout.structure.size() == printed[layout.c_type]


@pytest.mark.parametrize("prefix", WHOLLY_COVERED)
def test_no_constant_of_the_headers_is_forgotten(prefix: str) -> None:
    texts = "\n".join(text_of(header) for header in {check.header for check in CONSTANTS})
    in_headers = set(
        re.findall(rf"^\s*(?:#define\s+)?({prefix}\w+)\b(?=\s*[=,]|\s+\S|\s*$)", texts, re.MULTILINE)
    )
    ours = {c_name(check, member) for check in CONSTANTS for member in check.enum.__members__}
    assert in_headers - ours - LEFT_OUT.keys() == set()


@pytest.mark.parametrize(
    "module",
    [block, can, console, i2c, input, net, scsi, sound, spi, vsock, features, ids],
    ids=lambda m: m.__name__,
)
def test_every_enum_and_structure_is_checked(module: ModuleType) -> None:
    checked = {check.enum for check in CONSTANTS} | {layout.structure for layout in LAYOUTS}
    unchecked = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and value not in checked
    }
    # RESIZE's data has no structure in Linux's header; Described is about our own classes.
    assert unchecked <= {"ControlResize", "Described"}


def test_plain_constants_have_linux_values() -> None:
    texts = text_of("virtio_blk.h") + text_of("virtio_scsi.h")
    assert re.search(rf"VIRTIO_BLK_ID_BYTES\s+{block.ID_SIZE}\b", texts)
    assert re.search(rf"VIRTIO_SCSI_CDB_DEFAULT_SIZE\s+{scsi.CDB_DEFAULT_SIZE}\b", texts)
    assert re.search(rf"VIRTIO_SCSI_SENSE_DEFAULT_SIZE\s+{scsi.SENSE_DEFAULT_SIZE}\b", texts)
    assert console.BAD_ID == 2**32 - 1
