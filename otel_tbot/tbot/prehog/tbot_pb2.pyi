from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TbotStartEvent(_message.Message):
    __slots__ = ("run_mode", "version", "join_type", "helper", "helper_version", "destinations_other", "destinations_database", "destinations_kubernetes", "destinations_application")
    class RunMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RUN_MODE_UNSPECIFIED: _ClassVar[TbotStartEvent.RunMode]
        RUN_MODE_ONE_SHOT: _ClassVar[TbotStartEvent.RunMode]
        RUN_MODE_DAEMON: _ClassVar[TbotStartEvent.RunMode]
    RUN_MODE_UNSPECIFIED: TbotStartEvent.RunMode
    RUN_MODE_ONE_SHOT: TbotStartEvent.RunMode
    RUN_MODE_DAEMON: TbotStartEvent.RunMode
    RUN_MODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOIN_TYPE_FIELD_NUMBER: _ClassVar[int]
    HELPER_FIELD_NUMBER: _ClassVar[int]
    HELPER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_OTHER_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_DATABASE_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_KUBERNETES_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_APPLICATION_FIELD_NUMBER: _ClassVar[int]
    run_mode: TbotStartEvent.RunMode
    version: str
    join_type: str
    helper: str
    helper_version: str
    destinations_other: int
    destinations_database: int
    destinations_kubernetes: int
    destinations_application: int
    def __init__(self, run_mode: _Optional[_Union[TbotStartEvent.RunMode, str]] = ..., version: _Optional[str] = ..., join_type: _Optional[str] = ..., helper: _Optional[str] = ..., helper_version: _Optional[str] = ..., destinations_other: _Optional[int] = ..., destinations_database: _Optional[int] = ..., destinations_kubernetes: _Optional[int] = ..., destinations_application: _Optional[int] = ...) -> None: ...

class SubmitTbotEventRequest(_message.Message):
    __slots__ = ("distinct_id", "timestamp", "start")
    DISTINCT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    distinct_id: str
    timestamp: _timestamp_pb2.Timestamp
    start: TbotStartEvent
    def __init__(self, distinct_id: _Optional[str] = ..., timestamp: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., start: _Optional[_Union[TbotStartEvent, _Mapping]] = ...) -> None: ...

class SubmitTbotEventResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
