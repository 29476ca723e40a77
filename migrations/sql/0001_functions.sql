-- Functions and triggers of the ledger. Names say the rule they keep.

-- The audit chain -------------------------------------------------------------------------------
-- One head row, locked for update, serialises appends: `ORDER BY seq DESC LIMIT 1 FOR UPDATE` would
-- not (two waiters would both read the same tail). The time is taken after the lock is held.

INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, sha256('mend audit trail'::bytea));

CREATE FUNCTION audit_append_canonical(
    event_kind text, event_actor text, event_model bigint, event_subject text,
    event_data text, event_edits int8multirange DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    next_seq bigint;
    prev_hash bytea;
    new_hash bytea;
    moment timestamptz;
    event_body text;
BEGIN
    SELECT head.seq + 1, head.hash INTO STRICT next_seq, prev_hash
      FROM audit_head AS head WHERE head.id = 1 FOR UPDATE;
    moment := clock_timestamp();
    event_body := '{"actor":' || to_json(event_actor)
        || ',"at":"' || to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        || '","data":' || event_data
        || ',"kind":' || to_json(event_kind)
        || ',"model":' || coalesce(event_model::text, 'null')
        || ',"prev":"' || encode(prev_hash, 'hex')
        || '","seq":' || next_seq
        || ',"subject":' || coalesce(to_json(event_subject)::text, 'null') || '}';
    new_hash := sha256(convert_to(event_body, 'UTF8'));
    INSERT INTO audit (seq, at, kind, actor, model_id, subject, edits, body, prev, hash)
    VALUES (next_seq, moment, event_kind, event_actor, event_model, event_subject, event_edits,
            event_body, prev_hash, new_hash);
    UPDATE audit_head SET seq = next_seq, hash = new_hash WHERE id = 1;
    PERFORM pg_notify('mend_events',
        '{"kind":' || to_json(event_kind) || ',"model":' || coalesce(event_model::text, 'null')
        || ',"seq":' || next_seq || ',"subject":' || coalesce(to_json(event_subject)::text, 'null') || '}');
    RETURN next_seq;
END $$;

CREATE FUNCTION audit_is_append_only() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only: % is refused', TG_OP
        USING ERRCODE = 'MD010';
END $$;

CREATE TRIGGER audit_rows_never_change BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_is_never_emptied BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_head_is_never_removed BEFORE DELETE ON audit_head
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_head_is_never_emptied BEFORE TRUNCATE ON audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE FUNCTION audit_head_only_advances() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit head moves one step at a time: % to % is refused', OLD.seq, NEW.seq
        USING ERRCODE = 'MD010';
END $$;

-- The rule is in the condition, so that a lawful step costs no function call.
CREATE TRIGGER audit_head_advances BEFORE UPDATE ON audit_head
    FOR EACH ROW WHEN (NEW.seq IS DISTINCT FROM OLD.seq + 1)
    EXECUTE FUNCTION audit_head_only_advances();

-- Edits: allowed moves --------------------------------------------------------------------------

CREATE FUNCTION edit_move_is_refused() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'edit % cannot go from % to %', OLD.id, OLD.state, NEW.state
        USING ERRCODE = 'MD001';
END $$;

-- The rule is in the condition, so that an allowed move costs no function call.
CREATE TRIGGER edits_move_is_allowed BEFORE UPDATE OF state ON edits
    FOR EACH ROW WHEN (
        OLD.state <> NEW.state AND NOT CASE OLD.state
            WHEN 'submitted' THEN NEW.state IN ('queued', 'superseded', 'cancelled')
            WHEN 'awaiting_approval' THEN NEW.state IN ('submitted', 'queued', 'rejected', 'cancelled')
            WHEN 'queued' THEN NEW.state IN ('claimed', 'superseded', 'cancelled')
            WHEN 'claimed' THEN NEW.state IN ('submitted', 'queued', 'applied', 'quarantined', 'superseded', 'cancelled', 'failed')
            WHEN 'applied' THEN NEW.state IN ('queued', 'claimed', 'live', 'quarantined', 'superseded', 'reverted')
            WHEN 'live' THEN NEW.state IN ('applied', 'superseded', 'reverted')
            WHEN 'quarantined' THEN NEW.state IN ('queued', 'cancelled')
            WHEN 'superseded' THEN NEW.state IN ('applied', 'live', 'reverted')
            WHEN 'reverted' THEN NEW.state IN ('queued', 'applied', 'live', 'superseded')
            WHEN 'failed' THEN NEW.state IN ('queued', 'cancelled')
            ELSE false
        END
    )
    EXECUTE FUNCTION edit_move_is_refused();

CREATE FUNCTION edit_begins_well() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an edit cannot begin as %', NEW.state USING ERRCODE = 'MD001';
END $$;

-- AFTER, not BEFORE: a row trigger that runs before would take COPY's multi-row insertion away.
CREATE TRIGGER edits_begin_well AFTER INSERT ON edits
    FOR EACH ROW WHEN (NEW.state NOT IN ('submitted', 'awaiting_approval', 'queued'))
    EXECUTE FUNCTION edit_begins_well();

CREATE FUNCTION edits_are_kept() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'edits and versions are never deleted: cancel or revert instead'
        USING ERRCODE = 'MD001';
END $$;

CREATE TRIGGER edits_are_never_deleted BEFORE DELETE ON edits
    FOR EACH ROW EXECUTE FUNCTION edits_are_kept();
CREATE TRIGGER versions_are_never_deleted BEFORE DELETE ON versions
    FOR EACH ROW EXECUTE FUNCTION edits_are_kept();

-- What a person asked for never changes; only erasure (all texts at once) may blank it.
CREATE FUNCTION edit_content_is_fixed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.salt = '\x'::bytea AND NEW.prompt = '(erased)' AND NEW.target = '(erased)' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the content of edit % is fixed: submit a new edit instead', OLD.id
        USING ERRCODE = 'MD001';
END $$;

CREATE TRIGGER edits_content_is_fixed
    BEFORE UPDATE OF prompt, target, subject, relation, paraphrases, locality, portability,
                     fact_key, content_digest, salt, model_id, source, idempotency_key ON edits
    FOR EACH ROW EXECUTE FUNCTION edit_content_is_fixed();

-- Versions: immutable but for what is learned about them later -----------------------------------

CREATE FUNCTION version_is_immutable() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.id, NEW.model_id, NEW.number, NEW.parent_id, NEW.digest, NEW.base_digest,
        NEW.editor_digest, NEW.composition, NEW.batch_id, NEW.fence, NEW.path, NEW.edit_count,
        NEW.created_by, NEW.created_at)
       IS DISTINCT FROM
       (OLD.id, OLD.model_id, OLD.number, OLD.parent_id, OLD.digest, OLD.base_digest,
        OLD.editor_digest, OLD.composition, OLD.batch_id, OLD.fence, OLD.path, OLD.edit_count,
        OLD.created_by, OLD.created_at) THEN
        RAISE EXCEPTION 'version % of model % is immutable', OLD.number, OLD.model_id
            USING ERRCODE = 'MD002';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER versions_are_immutable BEFORE UPDATE ON versions
    FOR EACH ROW EXECUTE FUNCTION version_is_immutable();

CREATE FUNCTION set_is_immutable() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the edit set of a version is immutable' USING ERRCODE = 'MD002';
END $$;

CREATE TRIGGER version_sets_are_immutable BEFORE UPDATE OR DELETE ON version_edits
    FOR EACH ROW EXECUTE FUNCTION set_is_immutable();

CREATE FUNCTION fence_only_grows() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'the fence of model % only grows', OLD.model_id USING ERRCODE = 'MD003';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER leases_fence_grows BEFORE UPDATE ON leases
    FOR EACH ROW EXECUTE FUNCTION fence_only_grows();

-- The edits of a version: the newest change of each edit along the line of parents.
CREATE FUNCTION live_set(of_version bigint)
RETURNS TABLE (edit_id bigint, factor_digest text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE line AS (
        SELECT id, parent_id, number FROM versions WHERE id = of_version
        UNION ALL
        SELECT parent.id, parent.parent_id, parent.number
          FROM versions AS parent JOIN line ON parent.id = line.parent_id
    ), newest AS (
        SELECT DISTINCT ON (change.edit_id) change.edit_id, change.op, change.factor_digest
          FROM line JOIN version_edits AS change ON change.version_id = line.id
         ORDER BY change.edit_id, line.number DESC
    )
    SELECT newest.edit_id, newest.factor_digest FROM newest WHERE newest.op = 'add';
$$;

-- Submission: one round trip --------------------------------------------------------------------
-- Locks: shared on the model (bulk submission and re-queueing take it exclusively), then the
-- idempotency key, then the fact; the audit head comes last, as everywhere.

CREATE FUNCTION multirange_of(ids bigint[]) RETURNS int8multirange
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT range_agg(int8range(one, one, '[]')) FROM unnest(ids) AS one;
$$;

CREATE FUNCTION submit_edit(
    p_model bigint, p_actor text, p_prompt text, p_target text, p_subject text, p_relation text,
    p_paraphrases jsonb, p_locality jsonb, p_portability jsonb, p_reason text, p_source text,
    p_key text, p_fact text, p_salt bytea, p_digest text, p_priority smallint,
    p_not_before timestamptz, p_expires_at timestamptz
) RETURNS TABLE (
    edit_id bigint, duplicate boolean, state edit_state, superseded bigint[], contradicts bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    needs_approval boolean;
    new_id bigint;
    new_state edit_state;
    rival bigint;
    waits boolean;
    replaced bigint[] := '{}';
    replaced_states text;
    moves text;
BEGIN
    -- (a lock of nothing is none: the functions are strict)
    PERFORM pg_advisory_xact_lock_shared(1296387652, p_model::integer),
            pg_advisory_xact_lock(hashtextextended(p_key, p_model)),
            pg_advisory_xact_lock(hashtextextended(p_fact, -p_model));
    SELECT approval INTO needs_approval FROM models WHERE id = p_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no model %', p_model USING ERRCODE = 'MD404';
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e.state INTO new_id, new_state FROM edits AS e
         WHERE e.model_id = p_model AND e.idempotency_key = p_key;
        IF FOUND THEN
            RETURN QUERY SELECT new_id, true, new_state, '{}'::bigint[], NULL::bigint;
            RETURN;
        END IF;
    END IF;
    IF p_expires_at <= clock_timestamp() THEN
        RAISE EXCEPTION 'expires_at % is already past', p_expires_at USING ERRCODE = 'MD400';
    END IF;
    SELECT max(e.id) FILTER (WHERE e.source <> p_source
                               AND lower(btrim(e.target)) <> lower(btrim(p_target))),
           coalesce(bool_or(e.state IN ('submitted', 'queued')), false)
      INTO rival, waits FROM edits AS e
     WHERE e.model_id = p_model AND e.fact_key = p_fact::uuid
       AND (e.state IN ('submitted', 'queued') OR e.state IN ('claimed', 'applied', 'live'));
    new_id := nextval('edits_id_seq');
    IF needs_approval OR rival IS NOT NULL THEN
        new_state := 'awaiting_approval';
    ELSE
        new_state := CASE WHEN p_not_before > clock_timestamp() THEN 'submitted' ELSE 'queued' END;
    END IF;
    IF waits AND new_state <> 'awaiting_approval' THEN
        WITH old AS (
            SELECT e.id, e.state FROM edits AS e
             WHERE e.model_id = p_model AND e.fact_key = p_fact::uuid AND e.state IN ('submitted', 'queued')
               FOR UPDATE
        ), moved AS (
            UPDATE edits AS e SET state = 'superseded', superseded_by = new_id
              FROM old WHERE e.id = old.id RETURNING old.id, old.state
        )
        SELECT coalesce(array_agg(moved.id), '{}'),
               string_agg(',{"edits":"' || moved.id || '","from":"' || moved.state
                          || '","to":"superseded"}', '' ORDER BY moved.id)
          INTO replaced, replaced_states FROM moved;
    END IF;
    INSERT INTO edits (id, model_id, state, prompt, target, subject, relation, paraphrases, locality,
                       portability, reason, source, submitted_by, idempotency_key, fact_key, salt,
                       content_digest, priority, not_before, expires_at)
    VALUES (new_id, p_model, new_state, p_prompt, p_target, p_subject, p_relation, p_paraphrases,
            p_locality, p_portability, p_reason, p_source, p_actor, p_key, p_fact::uuid, p_salt, p_digest,
            p_priority, p_not_before, p_expires_at);
    moves := '[{"edits":"' || new_id || '","from":null,"to":"' || new_state || '"}'
        || coalesce(replaced_states, '') || ']';
    PERFORM audit_append_canonical(
        'edit.submitted', p_actor, p_model, 'edit:' || new_id,
        '{"contradicts":' || coalesce(rival::text, 'null')
            || ',"digest":' || to_json(p_digest)
            || ',"moves":' || moves
            || ',"reason":' || coalesce(to_json(p_reason)::text, 'null')
            || ',"source":' || to_json(p_source) || '}',
        CASE WHEN replaced = '{}' THEN int8multirange(int8range(new_id, new_id, '[]'))
             ELSE multirange_of(replaced || new_id) END);
    RETURN QUERY SELECT new_id, false, new_state, replaced, rival;
END $$;

-- Names each take of a chunk of factors (ledger.chunks).
CREATE SEQUENCE chunk_tokens;
