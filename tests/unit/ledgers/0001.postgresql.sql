--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: account; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.account (
    id character varying(16) NOT NULL,
    label text NOT NULL,
    kind text NOT NULL,
    applies_to text NOT NULL,
    settled_micro_usd bigint NOT NULL,
    unproven_micro_usd bigint NOT NULL,
    reserved_micro_usd bigint NOT NULL,
    warned_micro_usd bigint NOT NULL,
    opened_ms bigint NOT NULL
);


--
-- Name: budget; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.budget (
    name character varying(100) NOT NULL,
    cap_micro_usd bigint NOT NULL,
    scope character varying(10) NOT NULL,
    applies_to text NOT NULL,
    per character varying(10) NOT NULL,
    timezone text NOT NULL,
    on_exceeded character varying(10) NOT NULL
);


--
-- Name: call; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.call (
    id character varying(32) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    claim character varying(64) NOT NULL,
    state character varying(10) NOT NULL,
    holder character varying(32) NOT NULL,
    lease_until_ms bigint NOT NULL,
    purpose character varying(20) NOT NULL,
    parent character varying(32),
    item_id text,
    connection_id text NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    map_index integer NOT NULL,
    try_number integer NOT NULL,
    owner text,
    tags text,
    trace_id character varying(32) NOT NULL,
    model text NOT NULL,
    ceiling_micro_usd bigint,
    opened_ms bigint NOT NULL,
    closed_ms bigint,
    latency_ms integer,
    stop_reason text,
    uncached_tokens bigint,
    output_tokens bigint,
    cache_read_tokens bigint,
    cache_write_5m_tokens bigint,
    cache_write_1h_tokens bigint,
    cost_micro_usd bigint,
    error_class text,
    error text,
    accounts text,
    version text,
    family character varying(16),
    ceiling_tokens bigint
);


--
-- Name: daily; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.daily (
    id character varying(32) NOT NULL,
    day integer NOT NULL,
    is_pruned boolean NOT NULL,
    dag_id text NOT NULL,
    owner text,
    tags text,
    model text NOT NULL,
    connection_id text NOT NULL,
    calls bigint NOT NULL,
    failed bigint NOT NULL,
    unproven bigint NOT NULL,
    unpriced bigint NOT NULL,
    uncached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_5m_tokens bigint NOT NULL,
    cache_write_1h_tokens bigint NOT NULL,
    cost_micro_usd bigint NOT NULL,
    unproven_micro_usd bigint NOT NULL,
    reused bigint NOT NULL,
    reused_micro_usd bigint NOT NULL,
    routed_micro_usd bigint NOT NULL
);


--
-- Name: document; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.document (
    sighting character varying(64) NOT NULL,
    fingerprint character varying(64) NOT NULL
);


--
-- Name: effect; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.effect (
    id character varying(64) NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    map_index integer NOT NULL,
    try_number integer NOT NULL,
    call_id character varying(32),
    tool text NOT NULL,
    is_irreversible boolean NOT NULL,
    state character varying(10) NOT NULL,
    holder character varying(32) NOT NULL,
    lease_until_ms bigint NOT NULL,
    input bytea NOT NULL,
    output bytea,
    began_ms bigint NOT NULL,
    ended_ms bigint
);


--
-- Name: ledger_schema_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.ledger_schema_version (
    version integer NOT NULL
);


--
-- Name: payload; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.payload (
    call_id character varying(32) NOT NULL,
    prompt bytea,
    reply bytea
);


--
-- Name: rate_limit; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.rate_limit (
    name text NOT NULL,
    requests_free_ms double precision NOT NULL,
    input_free_ms double precision NOT NULL,
    output_free_ms double precision NOT NULL,
    quiet_until_ms double precision NOT NULL,
    rpm bigint,
    itpm bigint,
    otpm bigint,
    learnt_ms double precision NOT NULL,
    cut_rpm double precision NOT NULL,
    cut_ms double precision NOT NULL,
    same_cuts integer NOT NULL,
    written_ms double precision NOT NULL,
    waiting text NOT NULL
);


--
-- Name: review; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.review (
    id character varying(64) NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    map_index integer NOT NULL,
    first_try integer NOT NULL,
    status character varying(10) NOT NULL,
    asked_hash character varying(64) NOT NULL,
    shown bytea,
    shown_hash character varying(64),
    content bytea NOT NULL,
    content_hash character varying(64) NOT NULL,
    choice text,
    decided bytea,
    decided_hash character varying(64),
    decided_by text,
    feedback text,
    why text,
    shown_ms bigint NOT NULL,
    decided_ms bigint
);


--
-- Name: saving; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.saving (
    id character varying(32) NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    map_index integer NOT NULL,
    try_number integer NOT NULL,
    connection_id text NOT NULL,
    owner text,
    tags text,
    model text NOT NULL,
    version text,
    at_ms bigint NOT NULL,
    reused bigint NOT NULL,
    reused_micro_usd bigint NOT NULL,
    routed_micro_usd bigint NOT NULL
);


--
-- Data for Name: account; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.account VALUES ('615f60f50fbda80c', 'dag invoices, 2026-12-01', 'dag day UTC', 'invoices', 1500, 900, 900, 1500, 1796127995360);
INSERT INTO public.account VALUES ('93c06fcdd51837e9', 'run invoices/scheduled__2026-01-01', 'run', 'invoices', 1500, 900, 900, 1500, 1796127995424);


--
-- Data for Name: budget; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.budget VALUES ('nightly', 9000000, 'dag', '', 'day', 'UTC', 'fail');


--
-- Data for Name: call; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.call VALUES ('066191a32418e007017b43ac761b79df', '0000000000000000000000000000000000000000000000000000000000000000', '919c7cd54cd2988959541a422fc1c49ca55f1ba12a1dcf0b487b5acbc91900d5', 'settled', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040468, 'answer', NULL, 'invoice-0.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995468, 1796127995540, 700, 'end_turn', 100, 20, 50, 0, 0, 120, NULL, NULL, '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a3264b60bb0909d72dd8e3e7e7', '0000000000000000000000000000000000000000000000000000000000000001', '0000000000000000000000000000000000000000000000000000000000000001', 'settled', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040612, 'answer', NULL, 'invoice-1.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995612, 1796127995644, 700, 'end_turn', 100, 20, 50, 0, 0, 120, 'InvalidOutput', 'The total is not a number.', '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a32783e03fb2dfa4ed529253b5', '0000000000000000000000000000000000000000000000000000000000000002', 'c4fc548db2d65923f2cf546d53f22f5974203b7ceda308ceb72be221967519e8', 'reopened', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040692, 'answer', NULL, 'invoice-2.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995692, 1796127995722, 700, 'end_turn', 100, 20, 50, 0, 0, 120, NULL, NULL, '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a328eb404dfcf1330b34dc0aea', '0000000000000000000000000000000000000000000000000000000000000003', '0000000000000000000000000000000000000000000000000000000000000003', 'settled', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040784, 'answer', NULL, 'invoice-3.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995784, 1796127995813, 700, 'end_turn', 100, 20, 50, 0, 0, 120, NULL, NULL, '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a32a04806e417788673dc4144a', '0000000000000000000000000000000000000000000000000000000000000004', '2746e5d46b8f13f7ac2876e72bde4fc118dd74a37cffaafb6b916bc6b89e9c19', 'settled', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040856, 'answer', NULL, 'invoice-4.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995856, 1796127995883, 700, 'end_turn', 100, 20, 50, 0, 0, 120, NULL, NULL, '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a32b0e2031dc1c1586bccd124a', '0000000000000000000000000000000000000000000000000000000000000005', '0000000000000000000000000000000000000000000000000000000000000005', 'failed', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040924, 'answer', NULL, 'invoice-5.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995924, 1796127995944, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'Overloaded', '529', '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a32baa6068948d350733b66f99', '0000000000000000000000000000000000000000000000000000000000000006', '65156c1fd4141e6da68f7082c770e6b422370f3f154c60fde6568b8127769cb2', 'unproven', '6a4076e32f4f4620b370b674fdb66dfc', 1796128040964, 'answer', NULL, 'invoice-6.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127995964, 1796127995995, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 900, 'Overloaded', '529', '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);
INSERT INTO public.call VALUES ('066191a32cb4007ba40b9275a380f3c1', '0000000000000000000000000000000000000000000000000000000000000007', '0000000000000000000000000000000000000000000000000000000000000007', 'open', '6a4076e32f4f4620b370b674fdb66dfc', 1796128041032, 'answer', NULL, 'invoice-7.pdf', 'claude_default', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'finance', '["nightly"]', '00000000000000000000000000000000', 'claude-haiku-5-5', 900, 1796127996032, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '615f60f50fbda80c 93c06fcdd51837e9', 'v1', 'ffffffffffffffff', 500);


--
-- Data for Name: daily; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.daily VALUES ('408834f9653a95523d9d16f476ce7596', 20788, false, 'invoices', 'finance', '["nightly"]', 'claude-haiku-5-5', 'claude_default', 5, 1, 1, 0, 500, 100, 250, 0, 0, 600, 900, 3, 360, 0);


--
-- Data for Name: document; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.document VALUES ('0000000000000000000000000000000000000000000000000000000000000100', '0000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO public.document VALUES ('0000000000000000000000000000000000000000000000000000000000000101', '0000000000000000000000000000000000000000000000000000000000000001');
INSERT INTO public.document VALUES ('0000000000000000000000000000000000000000000000000000000000000102', '0000000000000000000000000000000000000000000000000000000000000002');
INSERT INTO public.document VALUES ('0000000000000000000000000000000000000000000000000000000000000103', '0000000000000000000000000000000000000000000000000000000000000003');
INSERT INTO public.document VALUES ('0000000000000000000000000000000000000000000000000000000000000104', '0000000000000000000000000000000000000000000000000000000000000004');


--
-- Data for Name: effect; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.effect VALUES ('95f8f458bd9791e612dce1bc46cc79eb58c1466726e122bec4c22b962350efaf', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'cccccccccccccccccccccccccccccccc', 'send_mail', true, 'begun', 'dfe9b975d0f94a9eb6a0167b2dbe0388', 1796128006104, '\x789cab562ac957b2524acbcc4bcc4b4e55aa05002ceb0572', NULL, 1796127996104, NULL);


--
-- Data for Name: ledger_schema_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.ledger_schema_version VALUES (1);


--
-- Data for Name: payload; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.payload VALUES ('066191a32418e007017b43ac761b79df', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', '\x7b22636f6e74656e74223a5b7b2274797065223a2274657874222c2274657874223a2246696e652e227d5d7d');
INSERT INTO public.payload VALUES ('066191a3264b60bb0909d72dd8e3e7e7', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', '\x7b22636f6e74656e74223a5b7b2274797065223a2274657874222c2274657874223a2246696e652e227d5d7d');
INSERT INTO public.payload VALUES ('066191a32783e03fb2dfa4ed529253b5', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', '\x7b22636f6e74656e74223a5b7b2274797065223a2274657874222c2274657874223a2246696e652e227d5d7d');
INSERT INTO public.payload VALUES ('066191a328eb404dfcf1330b34dc0aea', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', '\x7b22636f6e74656e74223a5b7b2274797065223a2274657874222c2274657874223a2246696e652e227d5d7d');
INSERT INTO public.payload VALUES ('066191a32a04806e417788673dc4144a', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', '\x7b22636f6e74656e74223a5b7b2274797065223a2274657874222c2274657874223a2246696e652e227d5d7d');
INSERT INTO public.payload VALUES ('066191a32b0e2031dc1c1586bccd124a', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', NULL);
INSERT INTO public.payload VALUES ('066191a32baa6068948d350733b66f99', '\x7801ab56cacd4f49cd51b2524ace492c4d49d5cd48cccc2ed535d53555aa05008b0d093d', NULL);


--
-- Data for Name: rate_limit; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.rate_limit VALUES ('claude_default/claude-haiku-5-5', 1796128004120, 1796128004120, 1796128004120, 0, 600, 60000, NULL, 1796127996120, 0, 0, 0, 1796127996120, '{}');


--
-- Data for Name: review; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.review VALUES ('b753d4361531add09f3c5c6fd60802a04fd34fe046f20bb0f08dc15e38f13f7c', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'pending', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '\x789c534acb2fca55020006de01f9', 'e4ea2137b49a629f678153fe614ae313c6dd1761a757afc764cf1cd74a986de6', '\x789c53ca492d29492d5202000cb302d5', '4540c1847af8c9e12561652f15394bc7f91f549a92586ff8a6eddcebaf76d1ac', NULL, NULL, NULL, NULL, NULL, 'doubtful', 1796127996100, NULL);


--
-- Data for Name: saving; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.saving VALUES ('066191a32d02201319c073601c4477c8', 'invoices', 'scheduled__2026-01-01', 'read', -1, 1, 'claude_default', 'finance', '["nightly"]', 'claude-haiku-5-5', 'v1', 1796127996052, 3, 360, 0);


--
-- Name: account account_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.account
    ADD CONSTRAINT account_pkey PRIMARY KEY (id);


--
-- Name: budget budget_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.budget
    ADD CONSTRAINT budget_pkey PRIMARY KEY (name);


--
-- Name: call call_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.call
    ADD CONSTRAINT call_pkey PRIMARY KEY (id);


--
-- Name: daily daily_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.daily
    ADD CONSTRAINT daily_pkey PRIMARY KEY (id);


--
-- Name: document document_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.document
    ADD CONSTRAINT document_pkey PRIMARY KEY (sighting);


--
-- Name: effect effect_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.effect
    ADD CONSTRAINT effect_pkey PRIMARY KEY (id);


--
-- Name: ledger_schema_version ledger_schema_version_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.ledger_schema_version
    ADD CONSTRAINT ledger_schema_version_pkey PRIMARY KEY (version);


--
-- Name: payload payload_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.payload
    ADD CONSTRAINT payload_pkey PRIMARY KEY (call_id);


--
-- Name: rate_limit rate_limit_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.rate_limit
    ADD CONSTRAINT rate_limit_pkey PRIMARY KEY (name);


--
-- Name: review review_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.review
    ADD CONSTRAINT review_pkey PRIMARY KEY (id);


--
-- Name: saving saving_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.saving
    ADD CONSTRAINT saving_pkey PRIMARY KEY (id);


--
-- Name: call_answered; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX call_answered ON public.call USING btree (fingerprint) WHERE ((state)::text = ANY ((ARRAY['settled'::character varying, 'late'::character varying])::text[]));


--
-- Name: call_claim; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX call_claim ON public.call USING btree (claim) WHERE ((state)::text = ANY ((ARRAY['open'::character varying, 'settled'::character varying])::text[]));


--
-- Name: call_family; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX call_family ON public.call USING btree (family, opened_ms) WHERE (family IS NOT NULL);


--
-- Name: call_open; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX call_open ON public.call USING btree (holder) WHERE ((state)::text = 'open'::text);


--
-- Name: call_run; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX call_run ON public.call USING btree (dag_id, run_id);


--
-- Name: daily_day; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX daily_day ON public.daily USING btree (day);


--
-- Name: effect_run; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX effect_run ON public.effect USING btree (dag_id, run_id);


--
-- Name: review_run; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX review_run ON public.review USING btree (dag_id, run_id);


--
-- PostgreSQL database dump complete
--


