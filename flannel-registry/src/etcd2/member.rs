//! One member: where it is, and what one request to it comes to.

use std::time::Duration;

use flannel_core::{BoxError, chain};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::timeout;

use super::answer::{EtcdError, Head};
use super::calls::Call;
use super::connection::Connection;
use super::tls::tls;
use crate::etcd::Files;

/// A member of the cluster.
#[derive(Debug)]
pub(super) struct Member {
    /// As people write it: `http://HOST:PORT`.
    pub(super) url: String,
    /// `HOST:PORT`, for the connection.
    address: String,
    /// The host alone, if it wants TLS.
    tls_name: Option<String>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) call: Call,
    pub(super) method: Method,
    /// The path of the URL, with its parameters.
    pub(super) path: String,
    /// The body of a write.
    pub(super) form: Option<String>,
}

/// How each request is made.
#[derive(Debug)]
pub(super) struct Manner {
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) files: Files,
}

/// Why a request to one member failed, by what it means for the next one.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was not sent.
    NotSent(BoxError),
    /// It was sent; what became of it is not known.
    Away(BoxError),
    /// Nothing was done, and another member may do it: this one does not serve the interface.
    Lacks(BoxError),
    /// Nothing was done, and a person must act.
    Refused(BoxError),
    /// Nothing was done, for the reason that etcd gives; the address is that of the member.
    Said(EtcdError, String),
}

impl Member {
    /// Reads an endpoint.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub(super) fn new(endpoint: &str) -> Result<Self, String> {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
        if !matches!(scheme, "http" | "https") {
            return Err("want http://ADDRESS:PORT or https://ADDRESS:PORT".to_owned());
        }
        let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
        if url.contains('@') {
            return Err("user and password do not belong into an endpoint".to_owned());
        }
        let uri: Uri = url.parse().map_err(|error| chain(&error))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it names no host")?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("nothing may follow the port".to_owned());
        }
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = format!("{host}:{port}");
        let tls_name = tls.then(|| bare.to_owned());
        Ok(Self { url, address, tls_name })
    }

    /// Makes one request over a connection of its own and reads the whole answer.
    pub(super) async fn call(&self, ask: &Ask, manner: &Manner) -> Result<(Head, Bytes), Trouble> {
        let mut connection = self.connect(manner).await?;
        let exchange = async {
            let answer = connection
                .send(self.request(ask, manner))
                .await
                .map_err(|error| self.away(error.as_ref(), manner))?;
            self.whole(&mut connection, answer, manner).await
        };
        timeout(manner.timeout, exchange).await.unwrap_or_else(|_| Err(self.late(manner.timeout)))
    }

    /// Makes one request, and leaves the body of a good answer to be read.
    pub(super) async fn begin(
        &self,
        connection: &mut Connection,
        ask: &Ask,
        manner: &Manner,
    ) -> Result<(Head, Incoming), Trouble> {
        let exchange = async {
            let answer = connection
                .send(self.request(ask, manner))
                .await
                .map_err(|error| self.away(error.as_ref(), manner))?;
            if answer.status().is_success() {
                return Ok((Head::read(answer.headers()), answer.into_body()));
            }
            match self.whole(connection, answer, manner).await {
                Ok(_) => Err(Trouble::Away(format!("{}: an error without one", self.url).into())),
                Err(trouble) => Err(trouble),
            }
        };
        timeout(manner.timeout, exchange).await.unwrap_or_else(|_| Err(self.late(manner.timeout)))
    }

    /// Connects.
    pub(super) async fn connect(&self, manner: &Manner) -> Result<Connection, Trouble> {
        let open = async {
            let tls = self.tls_name.as_deref().map(|name| tls(&manner.files, name)).transpose()?;
            Connection::open(&self.address, tls).await
        };
        match timeout(manner.connect_timeout, open).await {
            Ok(opened) => {
                opened.map_err(|error| Trouble::NotSent(self.explain(error.as_ref(), manner).into()))
            }
            Err(_) => {
                let limit = manner.connect_timeout;
                Err(Trouble::NotSent(format!("{}: no connection within {limit:?}", self.url).into()))
            }
        }
    }

    fn request(&self, ask: &Ask, manner: &Manner) -> Request<Full<Bytes>> {
        let body = ask.form.clone().unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = ask.method.clone();
        // Paths are made of escaped parts.
        *request.uri_mut() = ask.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        let authority = self.url.split_once("://").map_or("", |(_, authority)| authority);
        headers.insert(HOST, HeaderValue::from_str(authority).unwrap_or(HeaderValue::from_static("")));
        if ask.form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        if let Some(authorization) = &manner.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// Reads an answer to its end and tells what it comes to.
    async fn whole(
        &self,
        connection: &mut Connection,
        answer: Response<Incoming>,
        manner: &Manner,
    ) -> Result<(Head, Bytes), Trouble> {
        let (status, head) = (answer.status(), Head::read(answer.headers()));
        let location = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        let body =
            connection.read(answer.into_body()).await.map_err(|error| self.away(error.as_ref(), manner))?;
        if status.is_success() && body.starts_with(b"{") {
            return Ok((head, body));
        }
        Err(self.trouble(status, location.as_deref(), &body))
    }

    /// Tells what an answer means that is no success.
    fn trouble(&self, status: StatusCode, location: Option<&str>, body: &[u8]) -> Trouble {
        let url = &self.url;
        match EtcdError::read(body) {
            Some(error) if error.is_trouble() => Trouble::Away(format!("{url}: {error}").into()),
            Some(error) => Trouble::Said(error, url.clone()),
            None if status.is_server_error() => Trouble::Away(format!("{url}: HTTP status {status}").into()),
            None if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN => {
                Trouble::Refused(format!("{url}: HTTP status {status}{}", said(body)).into())
            }
            None => {
                let to = location.map(|to| format!(" to {to}")).unwrap_or_default();
                let reason = format!(
                    "{url} does not serve etcd's v2 interface (HTTP status {status}{to}): etcd 2.3 to 3.3 do, 3.4 and \
                     3.5 with --enable-v2=true, later ones never"
                );
                Trouble::Lacks(reason.into())
            }
        }
    }

    fn away(&self, error: &(dyn std::error::Error + 'static), manner: &Manner) -> Trouble {
        Trouble::Away(self.explain(error, manner).into())
    }

    /// An error with the member's address, and which file may have to do with it.
    fn explain(&self, error: &(dyn std::error::Error + 'static), manner: &Manner) -> String {
        let reason = format!("{}: {}", self.url, chain(error));
        match self.tls_name.as_ref().and_then(|_| manner.files.hint(&reason)) {
            Some(hint) => format!("{reason}; {hint}"),
            None => reason,
        }
    }

    fn late(&self, limit: Duration) -> Trouble {
        Trouble::Away(format!("{}: no answer within {limit:?}", self.url).into())
    }
}

/// The words of an answer that is not etcd's own, if they are few.
fn said(body: &[u8]) -> String {
    match std::str::from_utf8(body).map(str::trim) {
        Ok(text) if !text.is_empty() && text.len() <= 200 => format!(": {text}"),
        _ => String::new(),
    }
}
