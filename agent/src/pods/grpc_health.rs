//! `grpc.health.v1.Health/Check`, the one call that gRPC probes make: one string in, one enumeration out.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

const SERVING: u64 = 1;

pub async fn check(address: SocketAddr, service: String) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|_| format!("timeout: failed to connect service {address:?}"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| error.to_string())?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    match client.unary(Request::new(service), path, HealthCodec).await {
        Ok(reply) if *reply.get_ref() == SERVING => Ok(()),
        Ok(_) => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
        Err(status) if status.code() == Code::Unimplemented => {
            Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into())
        }
        Err(status) => Err(format!("rpc error: {}", status.message())),
    }
}

#[derive(Default)]
struct HealthCodec;

impl Codec for HealthCodec {
    type Encode = String;
    type Decode = u64;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for HealthCodec {
    type Item = String;
    type Error = Status;

    /// Field 1, length-delimited. Validation keeps service names far below 128 bytes of length prefix.
    fn encode(&mut self, service: String, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if !service.is_empty() {
            let length = u8::try_from(service.len()).ok().filter(|&length| length < 128);
            out.put_u8(0x0a);
            out.put_u8(length.ok_or_else(|| Status::invalid_argument("the service's name is too long"))?);
            out.put_slice(service.as_bytes());
        }
        Ok(())
    }
}

impl Decoder for HealthCodec {
    type Item = u64;
    type Error = Status;

    /// Field 1, varint; an empty message is the enumeration's zero.
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<u64>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(if bytes.first() == Some(&0x08) { bytes.get(1).copied().unwrap_or(0).into() } else { 0 }))
    }
}
