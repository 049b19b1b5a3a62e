// The state and actions of the screen: one engine, one conversation, one answer at a time. Runs on the main thread; the library
// computes on threads of its own.
package dev.dollop.sample

import android.app.Application
import android.net.Uri
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateListOf
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.setValue
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import dev.dollop.Chat
import dev.dollop.DollopException
import dev.dollop.Engine
import dev.dollop.EngineOptions
import dev.dollop.Event
import dev.dollop.Message
import dev.dollop.Plan
import dev.dollop.Stats
import dev.dollop.Status
import dev.dollop.android.DeviceMemory
import dev.dollop.android.followMemory
import dev.dollop.android.open
import dev.dollop.android.plan
import java.io.File
import java.io.IOException
import kotlinx.coroutines.Job
import kotlinx.coroutines.delay
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch

/** The values that the gauge shows. */
data class Gauge(val plan: Plan, val stats: Stats, val tokensPerSecond: Double, val trimmed: String?)

/** The view model of the chat. */
class ChatModel(application: Application) : AndroidViewModel(application) {
    private val scope = (application as SampleApplication).scope
    private val saved = File(application.filesDir, "chat.session").path
    private var engine: Engine? = null
    private var chat: Chat? = null
    private var answer: Job? = null
    private var following: AutoCloseable? = null
    private var trimmed: String? = null
    private var tokensPerSecond = 0.0

    val messages = mutableStateListOf<Message>()
    var gauge by mutableStateOf<Gauge?>(null)
        private set
    var note by mutableStateOf<String?>(null)
        private set
    var answering by mutableStateOf(false)
        private set

    val ready: Boolean get() = gauge != null

    /** Opens the picked document, with a budget that fits the device and its available memory. */
    fun open(uri: Uri): Job = viewModelScope.launch {
        showingFailures {
            shut()
            val device = DeviceMemory.of(getApplication<Application>())
            val whole = Engine.plan(getApplication<Application>(), uri)
            val options = EngineOptions(memoryBytes = maxOf(device.budget(), whole.smallestBytes))
            val opened = Engine.open(getApplication<Application>(), uri, options)
            engine = opened
            following = opened.followMemory(getApplication<Application>(), scope) { trimmed = "${it.level}: ${it.bytes / 1_000_000} MB freed" }
            chat = restored(opened) ?: opened.chat()
            messages += chat!!.messages()
            watch(opened)
        }
    }

    /** Restores the saved conversation. Returns null if there is none, or it is of another model. */
    private suspend fun restored(engine: Engine): Chat? = try {
        if (File(saved).exists()) engine.loadChat(saved) else null
    } catch (e: DollopException) {
        if (e.status != Status.UNSUPPORTED && e.status != Status.MALFORMED) throw e
        null
    }

    /** Updates the gauge twice a second while the engine is open. */
    private fun watch(engine: Engine) = viewModelScope.launch {
        while (isActive && this@ChatModel.engine === engine) {
            gauge = Gauge(engine.plan(), engine.stats(), tokensPerSecond, trimmed)
            delay(500)
        }
    }

    /** Sends a message and appends the answer to the screen as it is generated. */
    fun send(text: String) {
        val chat = chat ?: return
        if (answering || text.isBlank()) return
        answering = true
        messages += Message("user", text)
        messages += Message("assistant", "")
        answer = viewModelScope.launch {
            try {
                showingFailures {
                    chat.send(text).collect { event ->
                        messages[messages.lastIndex] = messages.last().let { it.copy(content = it.content + event.text) }
                        if (event is Event.Done) tokensPerSecond = event.outcome.tokensPerSecond ?: 0.0
                    }
                }
            } finally {
                answering = false
            }
        }
    }

    /** Stops the answer. The text generated so far stays. */
    fun stop() {
        answer?.cancel()
    }

    /** Stops the answer and saves the conversation when the screen is hidden: the system may then end the process. */
    fun hidden() {
        val chat = chat ?: return
        val running = answer
        scope.launch {
            running?.cancel()
            running?.join()
            showingFailures { chat.save(saved) }
        }
    }

    /** Runs an action and shows its failure in [note]. */
    private suspend fun showingFailures(action: suspend () -> Unit) {
        note = null
        try {
            action()
        } catch (e: DollopException) {
            note = e.message
        } catch (e: IOException) {
            note = e.message
        }
    }

    /** Closes the engine and clears the screen. */
    private fun shut() {
        following?.close()
        chat?.close()
        engine?.close()
        engine = null
        chat = null
        gauge = null
        messages.clear()
    }

    override fun onCleared(): Unit = shut()
}
